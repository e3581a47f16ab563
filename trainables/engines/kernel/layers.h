/* Layers of a network, forward and backward. */

/* ---- one product for every layer ------------------------------------------------------------------------------

   c[m * cm + n] = start + sum over k of a[m * am + ka[k]] * b[nb[n] + kb[k]], in vectors. The tables ka, kb and nb make it
   a dense layer or a convolution, forward or backward. The start is zero, a bias for each m, or what c holds. What a ReLU
   before or after the layer does is done here, while the numbers are in registers: forward it cuts them off at zero;
   backward only those whose place in `active`, which lies as c does, is above zero pass. */

typedef struct {
    int64_t m, n, k, am, cm;
    const int64_t *ka, *kb, *nb;
} Product;

enum { ZERO, BIAS, ADD };

INLINE vec cut(vec x) { return where(x < 0, splat(0), x); }

INLINE void corner(const int rows, const int columns, const Product *p, const vec *a, const vec *b, vec *c,
                   const int64_t *nb, int start, const vec *bias, int cuts, const vec *active) {
    vec sum[8][3];
    const vec *bn[3];
    UNROLL for (int j = 0; j < columns; j++) bn[j] = b + nb[j];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < columns; j++)
            sum[i][j] = start == ADD ? c[i * p->cm + j] : start == BIAS ? bias[i] : (vec){0};
    }
    for (int64_t k = 0; k < p->k; k++) {
        const int64_t at = p->kb[k];
        const vec *ak = a + p->ka[k];
        vec x[3];
        UNROLL for (int j = 0; j < columns; j++) x[j] = bn[j][at];
        UNROLL for (int i = 0; i < rows; i++) {
            vec w = ak[i * p->am];
            UNROLL for (int j = 0; j < columns; j++) sum[i][j] += w * x[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < columns; j++) {
            vec x = sum[i][j];
            if (cuts) x = cut(x);
            if (active) x = where(active[i * p->cm + j] > 0, x, splat(0));
            c[i * p->cm + j] = x;
        }
    }
}

static void product(const Product *p, const vec *a, const vec *b, vec *c, int start, const vec *bias, int cuts,
                    const vec *active) {
    int64_t n = 0;
    while (n < p->n) {
        const int columns = p->n - n >= 3 ? 3 : (int)(p->n - n);
        const int64_t most = columns == 1 ? 8 : 4;
        for (int64_t m = 0; m < p->m;) {
            const vec *am = a + m * p->am, *bias_m = bias ? bias + m : 0;
            const int64_t at = m * p->cm + n;
            const vec *passes = active ? active + at : 0;
            const int64_t *nb = p->nb + n;
            int64_t rows = p->m - m;
            rows = rows >= most ? most : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
#define CORNER(R, C) case R * 4 + C: corner(R, C, p, am, b, c + at, nb, start, bias_m, cuts, passes); break;
            switch (rows * 4 + columns) {
                CORNER(8, 1) CORNER(4, 3) CORNER(4, 2) CORNER(4, 1)
                CORNER(2, 3) CORNER(2, 2) CORNER(2, 1) CORNER(1, 3) CORNER(1, 2) CORNER(1, 1)
            }
            m += rows;
        }
        n += columns;
    }
}

/* ---- layers ----------------------------------------------------------------------------------------------------

   Numbers of a layer lie as [feature][example], images as [channel][row][column][example], each number a vector. */

enum { DENSE, RELU, CONVOLUTION, PAD, POOL, SHIFT, FIXED };

/* How Python describes a layer: eight whole numbers. DENSE, SHIFT, FIXED use in and out; the others the image's. */
typedef struct {
    int64_t kind, in, out, channels, height, width, kernel, filters;
} Layer;

typedef struct {
    Layer layer;
    int64_t weights;       /* place of its parameters; of FIXED, in the constants */
    vec *x, *y, *dx, *dy;  /* numbers and their derivatives, before and after */
    Product forward, weight, input;
    int cuts, active;      /* whether a ReLU follows, or comes before, whose work its products do */
    int64_t *tables, *back;
    vec *wide;             /* a convolution's dy with zeros around it */
} Step;

typedef struct {
    int64_t count, parameters, inputs, outputs, examples, first; /* first: the first step with parameters */
    Step *steps;
    vec *memory, *x, *y, *dy, *constants;
} Network;

static int64_t parameters_of(const Layer *l) {
    if (l->kind == DENSE) return l->in * l->out + l->out;
    if (l->kind == CONVOLUTION) return l->filters * (l->channels * l->kernel * l->kernel + 1);
    return l->kind == SHIFT ? l->in : 0;
}

static int64_t *counted(int64_t *table, int64_t count, int64_t stride) {
    for (int64_t k = 0; k < count; k++) table[k] = k * stride;
    return table + count;
}

static void plan_dense(Step *s, int64_t examples) {
    const int64_t in = s->layer.in, out = s->layer.out, most = in > out ? in : out;
    const int64_t wide = most > examples ? most : examples;
    int64_t *one = s->tables = malloc(sizeof(int64_t) * (2 * wide + most)), *by_in = one + wide, *by_n = by_in + most;
    counted(one, wide, 1), counted(by_in, out, in), counted(by_n, wide, examples);
    s->forward = (Product){out, examples, in, in, examples, one, by_n, one};
    s->weight = (Product){out, in, examples, examples, in, one, one, by_n};
    s->input = (Product){in, examples, out, 1, examples, by_in, by_n, one};
}

static void plan_convolution(Step *s, int64_t examples) {
    const int64_t c = s->layer.channels, h = s->layer.height, w = s->layer.width, k = s->layer.kernel;
    const int64_t f = s->layer.filters, oh = h - k + 1, ow = w - k + 1, patch = c * k * k, back = k * f * k;
    const int64_t row = w * examples, wide = ow + 2 * (k - 1);
    int64_t *one = s->tables = malloc(sizeof(int64_t) * (patch + row + patch + 2 * back)), *at = one + patch + row;
    counted(one, patch + row, 1);
    for (int64_t i = 0; i < patch; i++) at[i] = ((i / (k * k) * h + i / k % k) * w + i % k) * examples;
    int64_t *filter = at + patch, *from = filter + back;
    for (int64_t i = 0; i < back; i++) { /* [row of the filter][filter][column from the last], over dy with zeros beside it */
        const int64_t r = i / (f * k), o = i / k % f, x = i % k;
        filter[i] = o * patch + r * k + k - 1 - x;
        from[i] = ((o * oh - r) * wide + x) * examples;
    }
    s->forward = (Product){f, ow * examples, patch, patch, oh * ow * examples, one, at, one};
    s->weight = (Product){f, patch, ow * examples, oh * ow * examples, patch, one, one, at};
    s->input = (Product){c, w * examples, back, k * k, h * w * examples, filter, from, one};
}

static int64_t size_in(const Layer *l) { return l->kind >= CONVOLUTION && l->kind <= POOL ? l->channels * l->height * l->width : l->in; }
static int64_t size_out(const Layer *l) {
    switch (l->kind) {
        case CONVOLUTION: return l->filters * (l->height - l->kernel + 1) * (l->width - l->kernel + 1);
        case PAD: return l->channels * (l->height + 2 * l->kernel) * (l->width + 2 * l->kernel);
        case POOL: return l->channels * (l->height / l->kernel) * (l->width / l->kernel);
        default: return l->out;
    }
}

static vec *vectors(int64_t count) {
    void *memory = 0;
    return posix_memalign(&memory, 64, (count ? count : 1) * sizeof(vec)) ? 0 : memory;
}

static void release(Network *n) {
    for (int64_t i = 0; i < n->count; i++) free(n->steps[i].tables);
    free(n->steps), free(n->memory), free(n->constants);
}

static int prepare(Network *n, const Layer *layers, int64_t count, int64_t examples, const REAL *constants) {
    memset(n, 0, sizeof *n);
    n->steps = calloc(count, sizeof(Step));
    if (!n->steps) return 1;
    int64_t numbers = size_in(layers), fixed = 0, wide = 0;
    for (int64_t i = 0; i < count; i++) {
        const Layer *l = layers + i;
        if (l->kind != RELU) numbers += size_out(l);
        if (l->kind == FIXED) fixed += l->in * l->out;
        if (l->kind == CONVOLUTION) {
            const int64_t area = l->filters * (l->height - l->kernel + 1) * (l->width + l->kernel - 1);
            wide = area > wide ? area : wide;
        }
    }
    n->memory = vectors((2 * numbers + wide) * examples);
    n->constants = vectors(fixed);
    n->count = count, n->examples = examples, n->inputs = size_in(layers), n->first = -1;
    if (!n->memory || !n->constants) return 1;
    for (int64_t i = 0; i < fixed; i++) n->constants[i] = splat(constants[i]);
    vec *at = n->memory, *derivatives = at + numbers * examples, *spare = derivatives + numbers * examples;
    int64_t place = 0;
    n->x = at;
    for (int64_t i = 0; i < count; i++) {
        Step *s = n->steps + i;
        s->layer = layers[i], s->weights = n->parameters, s->wide = spare;
        s->x = at, s->dx = derivatives;
        if (s->layer.kind != RELU) at += size_in(layers + i) * examples, derivatives += size_in(layers + i) * examples;
        s->y = at, s->dy = derivatives;
        if (s->layer.kind == FIXED) s->weights = place, place += s->layer.in * s->layer.out;
        if (parameters_of(layers + i) && n->first < 0) n->first = i;
        n->parameters += parameters_of(layers + i);
        if (s->layer.kind == DENSE || s->layer.kind == FIXED) plan_dense(s, examples);
        if (s->layer.kind == CONVOLUTION) plan_convolution(s, examples);
        if (s->layer.kind == CONVOLUTION && !s->tables) return 1;
        s->active = s->layer.kind == DENSE && i && s[-1].layer.kind == RELU;
        s->cuts = (s->layer.kind == DENSE || s->layer.kind == CONVOLUTION) && i + 1 < count && layers[i + 1].kind == RELU;
        n->outputs = size_out(layers + i);
    }
    n->y = at, n->dy = derivatives;
    return 0;
}

static void pad(const Step *s, int64_t e, int back) {
    const Layer *l = &s->layer;
    const int64_t h = l->height + 2 * l->kernel, w = l->width + 2 * l->kernel;
    if (!back) memset(s->y, 0, l->channels * h * w * e * sizeof(vec));
    for (int64_t i = 0; i < l->channels * l->height; i++) {
        const int64_t outer = ((i / l->height * h + i % l->height + l->kernel) * w + l->kernel) * e, row = l->width * e;
        if (back) memcpy(s->dx + i * row, s->dy + outer, row * sizeof(vec));
        else memcpy(s->y + outer, s->x + i * row, row * sizeof(vec));
    }
}

/* One pooled number: the largest of k x k, or its derivative back to the first of the largest, as torch does. */
INLINE void pool_one(const vec *x, vec *y, vec *dx, vec dy, int64_t k, int64_t row, int64_t e, int back) {
    vec most = *x, left = dy;
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < k; j++) {
            const vec each = x[i * row + j * e];
            if (back) {
                const mask here = each == *y;
                dx[i * row + j * e] = where(here, left, splat(0)), left = where(here, splat(0), left);
            } else {
                most = where((each > most) | (each != each), each, most);
            }
        }
    }
    if (!back) *y = most;
}

static void pool(const Step *s, int64_t e, int back) {
    const Layer *l = &s->layer;
    const int64_t k = l->kernel, oh = l->height / k, ow = l->width / k, row = l->width * e;
    if (back) memset(s->dx, 0, l->channels * l->height * row * sizeof(vec));
    for (int64_t r = 0; r < l->channels * oh; r++) {
        const int64_t from = (r / oh * l->height + r % oh * k) * row;
        for (int64_t i = 0; i < ow; i++) {
            for (int64_t b = 0; b < e; b++) {
                const int64_t x = from + i * k * e + b, y = (r * ow + i) * e + b;
                pool_one(s->x + x, s->y + y, s->dx + x, s->dy[y], k, row, e, back);
            }
        }
    }
}

static void forward(const Network *n, const vec *parameters) {
    const int64_t e = n->examples;
    for (int64_t i = 0; i < n->count; i++) {
        const Step *s = n->steps + i;
        const Layer *l = &s->layer;
        const vec *w = parameters + s->weights;
        switch (l->kind) {
            case DENSE: product(&s->forward, w, s->x, s->y, BIAS, w + l->in * l->out, s->cuts, 0); break;
            case FIXED: product(&s->forward, n->constants + s->weights, s->x, s->y, ZERO, 0, 0, 0); break;
            case RELU:
                if (i && s[-1].cuts) break;
                for (int64_t j = 0; j < l->in * e; j++) s->y[j] = cut(s->y[j]);
                break;
            case SHIFT:
                for (int64_t j = 0; j < l->in * e; j++) s->y[j] = s->x[j] - w[j / e];
                break;
            case PAD: pad(s, e, 0); break;
            case POOL: pool(s, e, 0); break;
            case CONVOLUTION: {
                const int64_t rows = l->height - l->kernel + 1, ow = l->width - l->kernel + 1;
                const vec *bias = w + l->filters * l->channels * l->kernel * l->kernel;
                for (int64_t r = 0; r < rows; r++)
                    product(&s->forward, w, s->x + r * l->width * e, s->y + r * ow * e, BIAS, bias, s->cuts, 0);
            }
        }
    }
}

/* The sums of some rows at once, as each waits for its last addition. */
INLINE void sum_some(const int count, const vec *x, int64_t columns, vec *sums, int start) {
    vec sum[8];
    UNROLL for (int i = 0; i < count; i++) sum[i] = start == ADD ? sums[i] : (vec){0};
    for (int64_t j = 0; j < columns; j++) {
        UNROLL for (int i = 0; i < count; i++) sum[i] += x[i * columns + j];
    }
    UNROLL for (int i = 0; i < count; i++) sums[i] = sum[i];
}

static void sum_rows(const vec *x, int64_t rows, int64_t columns, vec *sums, int start) {
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) sum_some(8, x + i * columns, columns, sums + i, start);
    for (; i < rows; i++) sum_some(1, x + i * columns, columns, sums + i, start);
}

static void back_through_convolution(const Step *s, const vec *w, vec *gradients, int64_t e, int start, int further) {
    const Layer *l = &s->layer;
    const int64_t k = l->kernel, oh = l->height - k + 1, ow = l->width - k + 1;
    for (int64_t r = 0; r < oh; r++)
        product(&s->weight, s->dy + r * ow * e, s->x + r * l->width * e, gradients, r ? ADD : start, 0, 0, 0);
    sum_rows(s->dy, l->filters, oh * ow * e, gradients + l->filters * l->channels * k * k, start);
    if (!further) return;
    const int64_t wide = l->width + k - 1;
    memset(s->wide, 0, l->filters * oh * wide * e * sizeof(vec));
    for (int64_t i = 0; i < l->filters * oh; i++)
        memcpy(s->wide + (i * wide + k - 1) * e, s->dy + i * ow * e, ow * e * sizeof(vec));
    for (int64_t r = 0; r < l->height; r++) {
        const int64_t low = r - oh + 1 > 0 ? r - oh + 1 : 0, high = r < k - 1 ? r : k - 1; /* rows of the filter */
        Product part = s->input;
        part.ka += low * l->filters * k, part.kb += low * l->filters * k, part.k = (high - low + 1) * l->filters * k;
        product(&part, w, s->wide + r * wide * e, s->dx + r * l->width * e, ZERO, 0, 0, 0);
    }
}

/* From the derivatives by the outputs, n->dy, to those by the parameters. */
static void backward(const Network *n, const vec *parameters, vec *gradients, int start) {
    const int64_t e = n->examples;
    for (int64_t i = n->count - 1; i >= n->first; i--) {
        const Step *s = n->steps + i;
        const Layer *l = &s->layer;
        const vec *w = parameters + s->weights;
        vec *g = gradients + s->weights;
        const int further = i > n->first;
        switch (l->kind) {
            case DENSE:
                product(&s->weight, s->dy, s->x, g, start, 0, 0, 0);
                sum_rows(s->dy, l->out, e, g + l->in * l->out, start);
                if (further) product(&s->input, w, s->dy, s->dx, ZERO, 0, 0, s->active ? s->x : 0);
                break;
            case FIXED: product(&s->input, n->constants + s->weights, s->dy, s->dx, ZERO, 0, 0, 0); break;
            case RELU:
                if (i + 1 < n->count && s[1].active) break;
                for (int64_t j = 0; j < l->in * e; j++) s->dy[j] = where(s->y[j] > 0, s->dy[j], splat(0));
                break;
            case SHIFT:
                for (int64_t j = 0; j < l->in; j++) {
                    vec sum = start == ADD ? g[j] : (vec){0};
                    for (int64_t b = 0; b < e; b++) sum -= s->dy[j * e + b];
                    g[j] = sum;
                }
                break;
            case PAD: pad(s, e, 1); break;
            case POOL: pool(s, e, 1); break;
            case CONVOLUTION: back_through_convolution(s, w, g, e, start, further);
        }
    }
}
