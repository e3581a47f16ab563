/* Update rules, as trainables/rules.py has them. */

enum { GRADIENT, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW, AMSGRAD, ADAMAX, NADAM, RADAM };

#define MOST_SETTINGS 5
#define MOST_STATE 3
#define MOST_COEFFICIENTS 3

/* What is done to gradients before the rule: largest value, largest norm (infinite for no limit), weight decay. */
typedef struct {
    vec value, norm, decay;
} Adjust;

/* A gradient with its share and the parameter's decay, if `adjusted`. */
INLINE vec seen(const int adjusted, vec gradient, vec parameter, vec share, vec decay) {
    if (adjusted) return gradient * share + parameter * decay;
    return gradient;
}

/* One update of all parameters. v: settings, r: 1 - settings, formed in double; c: coefficients of this update. If
   `adjusted`, which the compiler knows, gradients are adjusted by `seen`. */
INLINE void step_of(const int adjusted, int64_t rule, int64_t count, vec *restrict p, const vec *restrict g,
                    vec *restrict s0, vec *restrict s1, vec *restrict s2, const vec *v, const vec *r, const vec *c,
                    vec rate, vec share, vec decay) {
#define EACH for (int64_t i = 0; i < count; i++)
#define G seen(adjusted, g[i], p[i], share, decay)
#define MOMENTS                      \
    s0[i] += (G - s0[i]) * r[0];     \
    s1[i] = s1[i] * v[1] + G * G * r[1]
    switch (rule) {
        case GRADIENT: EACH p[i] -= G * rate; break;
        case MOMENTUM: EACH { s0[i] = s0[i] * v[0] + G; p[i] -= s0[i] * rate; } break;
        case NESTEROV: EACH { s0[i] = s0[i] * v[0] + G; p[i] -= (s0[i] * v[0] + G) * rate; } break;
        case ADAGRAD: EACH { s0[i] += G * G; p[i] -= G / (root(s0[i]) + v[0]) * rate; } break;
        case RMSPROP:
            EACH {
                s0[i] = s0[i] * v[0] + G * G * r[0];
                p[i] -= G / (root(s0[i]) + v[1]) * rate;
            }
            break;
        case ADADELTA:
            EACH {
                s0[i] = s0[i] * v[0] + G * G * r[0];
                const vec u = root(s1[i] + v[1]) / root(s0[i] + v[1]) * G;
                s1[i] = s1[i] * v[0] + u * u * r[0];
                p[i] -= u * rate;
            }
            break;
        case ADAM: EACH { MOMENTS; p[i] -= s0[i] * c[0] / (root(s1[i]) * c[1] + v[2]) * rate; } break;
        case ADAMW:
            EACH { MOMENTS; p[i] -= (s0[i] * c[0] / (root(s1[i]) * c[1] + v[2]) + p[i] * v[3]) * rate; }
            break;
        case AMSGRAD:
            EACH {
                MOMENTS;
                s2[i] = where((s1[i] > s2[i]) | (s1[i] != s1[i]), s1[i], s2[i]);
                p[i] -= s0[i] * c[0] / (root(s2[i]) * c[1] + v[2]) * rate;
            }
            break;
        case ADAMAX:
            EACH {
                s0[i] += (G - s0[i]) * r[0];
                const vec decayed = s1[i] * v[1], now = magnitude(G) + v[2];
                s1[i] = where((now > decayed) | (now != now), now, decayed);
                p[i] -= s0[i] * c[0] / s1[i] * rate;
            }
            break;
        case NADAM:
            EACH { MOMENTS; p[i] -= (s0[i] * c[2] + G * c[0]) / (root(s1[i]) * c[1] + v[2]) * rate; }
            break;
        case RADAM:
            EACH { MOMENTS; p[i] -= (c[1] / (root(s1[i]) + v[2]) + c[2]) * s0[i] * c[0] * rate; }
            break;
    }
}

static void step(int64_t rule, int64_t count, vec *p, const vec *g, vec *const *kept, const vec *v, const vec *r,
                 const vec *c, vec rate) {
    step_of(0, rule, count, p, g, kept[0], kept[1], kept[2], v, r, c, rate, (vec){0}, (vec){0});
}

/* Clips the values of each slot's gradients, then their norm, adds the decay of the parameters, and makes the update. */
static void adjusted_step(int64_t rule, int64_t count, vec *p, vec *restrict g, vec *const *kept, const vec *v,
                          const vec *r, const vec *c, vec rate, const Adjust *adjust) {
    vec sums[4] = {{0}}, norm, share;
    int clips = 0;
    for (int s = 0; s < SLOTS; s++) clips |= adjust->value[s] < INFINITY;
    if (clips)
        EACH {
            const vec top = where(g[i] > adjust->value, adjust->value, g[i]);
            g[i] = where(top < -adjust->value, -adjust->value, top);
        }
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int k = 0; k < 4; k++) sums[k] += g[i + k] * g[i + k];
    for (; i < count; i++) sums[0] += g[i] * g[i];
    norm = root((sums[0] + sums[1]) + (sums[2] + sums[3]));
    share = adjust->norm / (norm + (REAL)1e-6); /* as torch.nn.utils.clip_grad_norm_ */
    /* Without a limit even an infinite norm changes nothing. */
    share = where((share < 1) | ((share != share) & (adjust->norm < INFINITY)), share, splat(1));
    step_of(1, rule, count, p, g, kept[0], kept[1], kept[2], v, r, c, rate, share, adjust->decay);
}
