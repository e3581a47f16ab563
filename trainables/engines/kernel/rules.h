/* Update rules, as trainables/rules.py has them. */

enum { GRADIENT, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW, AMSGRAD, ADAMAX, NADAM, RADAM };

#define MOST_SETTINGS 5
#define MOST_STATE 3
#define MOST_COEFFICIENTS 3

/* One update of all parameters. v: settings, r: 1 - settings, formed in double; c: coefficients of this update. */
static void step(int64_t rule, int64_t count, vec *restrict p, const vec *restrict g, vec *restrict s0,
                 vec *restrict s1, vec *restrict s2, const vec *v, const vec *r, const vec *c, vec rate) {
#define EACH for (int64_t i = 0; i < count; i++)
#define MOMENTS                            \
    s0[i] += (g[i] - s0[i]) * r[0];        \
    s1[i] = s1[i] * v[1] + g[i] * g[i] * r[1]
    switch (rule) {
        case GRADIENT: EACH p[i] -= g[i] * rate; break;
        case MOMENTUM: EACH { s0[i] = s0[i] * v[0] + g[i]; p[i] -= s0[i] * rate; } break;
        case NESTEROV: EACH { s0[i] = s0[i] * v[0] + g[i]; p[i] -= (s0[i] * v[0] + g[i]) * rate; } break;
        case ADAGRAD: EACH { s0[i] += g[i] * g[i]; p[i] -= g[i] / (root(s0[i]) + v[0]) * rate; } break;
        case RMSPROP:
            EACH {
                s0[i] = s0[i] * v[0] + g[i] * g[i] * r[0];
                p[i] -= g[i] / (root(s0[i]) + v[1]) * rate;
            }
            break;
        case ADADELTA:
            EACH {
                s0[i] = s0[i] * v[0] + g[i] * g[i] * r[0];
                const vec u = root(s1[i] + v[1]) / root(s0[i] + v[1]) * g[i];
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
                s0[i] += (g[i] - s0[i]) * r[0];
                const vec decayed = s1[i] * v[1], now = magnitude(g[i]) + v[2];
                s1[i] = where((now > decayed) | (now != now), now, decayed);
                p[i] -= s0[i] * c[0] / s1[i] * rate;
            }
            break;
        case NADAM:
            EACH { MOMENTS; p[i] -= (s0[i] * c[2] + g[i] * c[0]) / (root(s1[i]) * c[1] + v[2]) * rate; }
            break;
        case RADAM:
            EACH { MOMENTS; p[i] -= (c[1] / (root(s1[i]) + v[2]) + c[2]) * s0[i] * c[0] * rate; }
            break;
    }
}
