/* Vectors: a number of as many lanes as a tile has slots. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
/* The same everywhere, so that results differ between processors by rounding at most; narrower registers take two. */
#define VECTOR_BYTES 32
#define SINGLE (sizeof(REAL) == 4)
#define SLOTS ((int)(VECTOR_BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* At any place a number may be at: numpy and torch align rows no further. */
typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef __typeof__((vec){0} < (vec){0}) mask; /* all bits of a slot set, or none */

INLINE vec splat(REAL x) { return x - (vec){0}; }
INLINE vec where(mask m, vec yes, vec no) { return (vec)((m & (mask)yes) | (~m & (mask)no)); }

INLINE vec root(vec x) {
    vec y;
    for (int s = 0; s < SLOTS; s++) y[s] = SINGLE ? sqrtf(x[s]) : sqrt(x[s]);
    return y;
}

INLINE vec magnitude(vec x) { return where(x < 0, -x, x); }

/* exp(x) for x <= 0 to the last digit or two: 2^n times a Taylor polynomial of |r| <= ln(2) / 2. NaN stays NaN. */
INLINE vec exponential(vec x) {
    const REAL lowest = SINGLE ? -87 : -708;
    vec clipped = where(x < lowest, splat(lowest), x), scaled = clipped * (REAL)1.4426950408889634;
    const REAL shift = SINGLE ? 12582912.f : 6755399441055744.0; /* 1.5 x 2^23, 1.5 x 2^52: adding it rounds */
    vec n = (scaled + shift) - shift;
    vec r = clipped - n * (REAL)(SINGLE ? 0.693359375 : 0.693147180369123816490);
    r = r - n * (REAL)(SINGLE ? -2.12194440e-4 : 1.90821492927058770002e-10);
    vec sum = splat(1);
    for (int k = SINGLE ? 8 : 14; k > 0; k--) sum = 1 + sum * r * (REAL)(1.0 / k);
    mask bits = (mask)(n + shift) << (SINGLE ? 23 : 52); /* n in the exponent's place */
    vec power = (vec)((mask)splat(1) + bits);
    return where(x < lowest, splat(0), sum * power);
}
