/* Trains and evaluates stacked lanes: networks of one shape that differ in learning rate, settings and seed.

   Every number of a network is a vector with a slot for each of 8 lanes (float) or 4 (double), a tile. All slots go through
   the same instructions, so a lane's bits depend on nothing in its neighbours. Where a batch is large, fewer lanes share a
   tile and each takes several slots, its copies: they keep equal parameters, see parts of the batch, and add up their
   gradients. Sizes, batch, rule and loss are arguments at run time. A tile makes all updates of a call before the next tile
   starts, which keeps its parameters and the rule's state in the cache; large batches pass in blocks of examples.

   Compile once for each type: -DREAL=float, -DREAL=double. Neither -ffast-math nor anything else that assumes finite
   numbers: a NaN must survive ReLU, pooling and the loss. */

#include "vectors.h"
#include "layers.h"
#include "loss.h"
#include "rules.h"

/* Lanes are rows of (lanes, parameters). Each function returns 0, or 1 if memory ran out. A tile for which there are not
   lanes enough is filled up with its first one. */

typedef struct {
    const Layer *layers;
    int64_t count, block, copies; /* layers; examples of a slot that pass at a time; slots that a lane takes */
    const REAL *constants;
    Examples data;
    const int64_t *order, *seeds; /* (seeds, width) rows of the examples; the row of `order` of each lane */
    int64_t width, first, last;   /* lanes from `first` to before `last` */
} Work;

INLINE int64_t lane_of(const Work *w, int64_t tile, int slot) {
    const int64_t lane = tile + slot / w->copies;
    return lane < w->last ? lane : tile;
}

/* The examples from `start` to before `stop` of each lane's order, shared out to its copies. */
static void look(const Work *w, int64_t tile, int64_t start, int64_t stop, View *view) {
    const int64_t share = (stop - start + w->copies - 1) / w->copies;
    for (int s = 0; s < SLOTS; s++) {
        const int64_t skipped = s % w->copies * share, left = stop - start - skipped;
        const int64_t *row = w->order + w->seeds[lane_of(w, tile, s)] * w->width + start;
        view->counts[s] = left < share ? left : share;
        view->rows[s] = left > 0 ? row + skipped : row;
    }
}

static void load(const Work *w, vec *to, const REAL *from, int64_t count, int64_t tile) {
    for (int s = 0; s < SLOTS; s++) {
        const REAL *row = from + lane_of(w, tile, s) * count;
        for (int64_t i = 0; i < count; i++) ((REAL *)(to + i))[s] = row[i];
    }
}

static void store(const Work *w, const vec *from, REAL *to, int64_t count, int64_t tile) {
    for (int s = 0; s < SLOTS && tile + s / w->copies < w->last; s += w->copies)
        for (int64_t i = 0; i < count; i++) to[(tile + s / w->copies) * count + i] = ((const REAL *)(from + i))[s];
}

/* The sums over each lane's copies, in all of them: neighbours first, so that all have the same bits. */
static void add_copies(vec *x, int64_t count, int64_t copies) {
    for (int64_t apart = 1; apart < copies; apart *= 2) {
        for (int64_t i = 0; i < count; i++) {
            vec other;
            for (int s = 0; s < SLOTS; s++) other[s] = x[i][s ^ apart];
            x[i] += other;
        }
    }
}

static void tell(const Work *w, const double *slots, int64_t tile, int64_t examples, double *lanes) {
    for (int s = 0; s < SLOTS && tile + s / w->copies < w->last; s += w->copies) {
        double sum = 0;
        for (int copy = 0; copy < w->copies; copy++) sum += slots[s + copy];
        lanes[tile + s / w->copies] = sum / examples;
    }
}

/* Update u takes the examples from starts[u] to before stops[u] of a lane's row of the order. The rates are
   (rate_updates, lanes), of each update or the same for all; the settings (settings, lanes); the coefficients
   (coefficients, updates, lanes), or (..., 1) where lanes do not differ. Gradients are adjusted by (3, lanes) numbers, as
   Adjust has them, if there are any. Moving averages of the parameters, if there are any, keep shares of themselves,
   (updates, lanes). The losses, of each batch before its update, are (updates, lanes). */
EXPORT int native_train(const Work *w, int64_t updates, const int64_t *starts, const int64_t *stops, int64_t lanes,
                        REAL *parameters, REAL *const *state, int64_t rule, const double *rates, int64_t rate_updates,
                        const double *settings, int64_t setting_count, const double *coefficients,
                        int64_t coefficient_count, int64_t coefficient_lanes, const double *adjustments, REAL *average,
                        const double *keeps, double *losses) {
    Network n;
    const int failed = prepare(&n, w->layers, w->count, w->block, w->constants);
    const int64_t numbers = n.parameters;
    vec *memory = failed ? 0 : vectors(numbers * (3 + MOST_STATE));
    if (!memory) return release(&n), 1;
    vec *p = memory, *g = p + numbers, *mean = g + numbers, *kept[MOST_STATE];
    for (int i = 0; i < MOST_STATE; i++) kept[i] = mean + (i + 1) * numbers;
    for (int64_t tile = w->first; tile < w->last; tile += SLOTS / w->copies) {
        vec rate, v[MOST_SETTINGS], r[MOST_SETTINGS], c[MOST_COEFFICIENTS];
        View view;
        Adjust adjust = {0};
        load(w, p, parameters, numbers, tile);
        if (average) load(w, mean, average, numbers, tile);
        for (int i = 0; i < MOST_STATE; i++)
            if (state[i]) load(w, kept[i], state[i], numbers, tile);
        int64_t own[SLOTS]; /* the lane of each slot */
        for (int s = 0; s < SLOTS; s++) {
            const int64_t lane = own[s] = lane_of(w, tile, s);
            for (int i = 0; adjustments && i < 3; i++) ((vec *)&adjust)[i][s] = adjustments[i * lanes + lane];
            for (int64_t i = 0; i < setting_count; i++)
                v[i][s] = settings[i * lanes + lane], r[i][s] = 1 - settings[i * lanes + lane];
        }
        for (int64_t u = 0; u < updates; u++) {
            const int64_t batch = stops[u] - starts[u];
            double total[SLOTS] = {0};
            look(w, tile, starts[u], stops[u], &view);
            for (int64_t at = 0; at < view.counts[0]; at += w->block) {
                gather(&n, &w->data, &view, at);
                forward(&n, p);
                judge(&n, &w->data, &view, at, (REAL)1 / (REAL)batch, total, 0);
                backward(&n, p, g, at ? ADD : ZERO);
            }
            add_copies(g, numbers, w->copies);
            for (int64_t i = 0; i < coefficient_count; i++)
                for (int s = 0; s < SLOTS; s++) {
                    const int64_t lane = coefficient_lanes > 1 ? own[s] : 0;
                    c[i][s] = coefficients[(i * updates + u) * coefficient_lanes + lane];
                }
            if (!u || rate_updates > 1)
                for (int s = 0; s < SLOTS; s++) rate[s] = rates[(rate_updates > 1 ? u : 0) * lanes + own[s]];
            if (adjustments) adjusted_step(rule, numbers, p, g, kept, v, r, c, rate, &adjust);
            else step(rule, numbers, p, g, kept, v, r, c, rate);
            if (average) {
                vec keep;
                for (int s = 0; s < SLOTS; s++) keep[s] = keeps[u * lanes + own[s]];
                for (int64_t i = 0; i < numbers; i++) mean[i] = p[i] - (p[i] - mean[i]) * keep; /* p where it keeps 0 */
            }
            tell(w, total, tile, batch, losses + u * lanes);
        }
        store(w, p, parameters, numbers, tile);
        if (average) store(w, mean, average, numbers, tile);
        for (int i = 0; i < MOST_STATE; i++)
            if (state[i]) store(w, kept[i], state[i], numbers, tile);
    }
    free(memory), release(&n);
    return 0;
}

/* Mean loss, and share of right classes where there are classes, of the first `examples` in a lane's order, (lanes,). */
EXPORT int native_evaluate(const Work *w, int64_t examples, const REAL *parameters, double *losses, double *shares) {
    Network n;
    const int failed = prepare(&n, w->layers, w->count, w->block, w->constants);
    vec *p = failed ? 0 : vectors(n.parameters);
    if (!p) return release(&n), 1;
    for (int64_t tile = w->first; tile < w->last; tile += SLOTS / w->copies) {
        double total[SLOTS] = {0}, right[SLOTS] = {0};
        View view;
        load(w, p, parameters, n.parameters, tile);
        look(w, tile, 0, examples, &view);
        for (int64_t at = 0; at < view.counts[0]; at += w->block) {
            gather(&n, &w->data, &view, at);
            forward(&n, p);
            judge(&n, &w->data, &view, at, 0, total, right);
        }
        tell(w, total, tile, examples, losses);
        tell(w, right, tile, examples, shares);
    }
    free(p), release(&n);
    return 0;
}

/* One update of one network: a vector holds neighbouring parameters. */
EXPORT int native_step(int64_t numbers, REAL *parameters, const REAL *gradients, REAL *const *state, int64_t rule,
                       double rate, const double *settings, int64_t setting_count, const double *coefficients,
                       int64_t coefficient_count) {
    vec v[MOST_SETTINGS], r[MOST_SETTINGS], c[MOST_COEFFICIENTS];
    for (int64_t i = 0; i < setting_count; i++) v[i] = splat(settings[i]), r[i] = splat(1 - settings[i]);
    for (int64_t i = 0; i < coefficient_count; i++) c[i] = splat(coefficients[i]);
    const int64_t whole = numbers / SLOTS, rest = numbers % SLOTS, done = numbers - rest;
    step(rule, whole, (vec *)parameters, (const vec *)gradients, (vec *const *)state, v, r, c, splat(rate));
    vec p = {0}, g = {0}, kept[MOST_STATE] = {{0}}, *places[MOST_STATE] = {kept, kept + 1, kept + 2};
    memcpy(&p, parameters + done, rest * sizeof(REAL)), memcpy(&g, gradients + done, rest * sizeof(REAL));
    for (int i = 0; i < MOST_STATE; i++)
        if (state[i]) memcpy(kept + i, state[i] + done, rest * sizeof(REAL));
    step(rule, 1, &p, &g, places, v, r, c, splat(rate));
    memcpy(parameters + done, &p, rest * sizeof(REAL));
    for (int i = 0; i < MOST_STATE; i++)
        if (state[i]) memcpy(state[i] + done, kept + i, rest * sizeof(REAL));
    return 0;
}

/* Slots of a tile. */
EXPORT int64_t native_slots(void) { return SLOTS; }

EXPORT const char *native_compiler(void) {
#ifdef __clang__
    return __VERSION__;
#else
    return "gcc " __VERSION__;
#endif
}
