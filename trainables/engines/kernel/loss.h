/* Examples, and the loss of a network on them. */

typedef struct {
    const REAL *inputs;      /* (examples, features) */
    const REAL *values;      /* (examples, outputs), of a regression; else none */
    const int64_t *classes;  /* (examples,), of a classification; else none */
} Examples;

/* What each slot of a tile sees: rows of the examples, and how many. */
typedef struct {
    const int64_t *rows[SLOTS];
    int64_t counts[SLOTS];
} View;

/* Adds the losses of a block's examples to `losses`, and unless `share` is 0 leaves the derivatives of their sum times
   `share` in n->dy. `right`, if given, counts the examples whose class is the first of the largest outputs. */
static void judge(const Network *n, const Examples *data, const View *view, int64_t at, REAL share, double *losses,
                  double *right) {
    const int64_t e = n->examples, outputs = n->outputs;
    for (int64_t b = 0; b < e; b++) {
        vec loss = {0}, used;
        int64_t rows[SLOTS];
        for (int s = 0; s < SLOTS; s++) {
            used[s] = at + b < view->counts[s];
            rows[s] = used[s] ? view->rows[s][at + b] : view->rows[s][0];
        }
        const mask counts = used > 0;
        if (data->values) {
            for (int64_t o = 0; o < outputs; o++) {
                vec target;
                for (int s = 0; s < SLOTS; s++) target[s] = data->values[rows[s] * outputs + o];
                const vec error = n->y[o * e + b] - target;
                loss += error * error;
                if (share) n->dy[o * e + b] = where(counts, error * (2 * share / (REAL)outputs), splat(0));
            }
            loss = loss / (REAL)outputs;
        } else {
            vec most = n->y[b], total = {0}, best = {0};
            for (int64_t o = 1; o < outputs; o++) {
                const vec y = n->y[o * e + b];
                const mask more = (y > most) | ((y != y) & (most == most));
                most = where(more, y, most), best = where(more, splat((REAL)o), best);
            }
            for (int64_t o = 0; o < outputs; o++) {
                const vec power = exponential(n->y[o * e + b] - most);
                total += power;
                if (share) n->dy[o * e + b] = power;
            }
            for (int s = 0; s < SLOTS; s++) {
                const int64_t target = data->classes[rows[s]];
                loss[s] = (SINGLE ? logf(total[s]) : log(total[s])) + most[s] - n->y[target * e + b][s];
                if (right && used[s]) right[s] += best[s] == target;
            }
            if (share) {
                for (int64_t o = 0; o < outputs; o++)
                    n->dy[o * e + b] = where(counts, n->dy[o * e + b] * (share / total), splat(0));
                for (int s = 0; s < SLOTS; s++)
                    if (used[s]) n->dy[data->classes[rows[s]] * e + b][s] -= share;
            }
        }
        for (int s = 0; s < SLOTS; s++)
            if (used[s]) losses[s] += loss[s];
    }
}

/* A block's examples, each slot its own; one that has no more repeats its last, which does not count. */
static void gather(const Network *n, const Examples *data, const View *view, int64_t at) {
    const int64_t e = n->examples, features = n->inputs;
    for (int64_t b = 0; b < e; b++) {
        for (int s = 0; s < SLOTS; s++) {
            const int64_t last = view->counts[s] > 0 ? view->counts[s] - 1 : 0, place = at + b < last ? at + b : last;
            const REAL *x = data->inputs + view->rows[s][place] * features;
            REAL *to = (REAL *)(n->x + b) + s;
            for (int64_t f = 0; f < features; f++) to[f * e * SLOTS] = x[f];
        }
    }
}
