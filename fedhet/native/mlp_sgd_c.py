"""The C text of `fedhet.native.mlp_sgd`: steps of gradient descent of several perceptrons.

Every product is a loop over blocks of numbers that stay in registers while the rest streams past them; a register
holds eight numbers, or sixteen where the processor has such, in the compiler's own notation for that, so nothing here
is written for one kind of processor. What is left of a row is taken by half a register, then one by one.
"""

HEAD = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__ /* registers twice as long, and twice as many */
#define LANES 16
#define ROWS 4
#define OUTER 8
#else
#define LANES 8
#define ROWS 2      /* rows of weights whose products with samples are in registers at a time */
#define OUTER 6     /* rows of weights that are changed at a time, on two lanes */
#endif
#define SAMPLES 5
#define BLOCK 400   /* inputs taken at a time: of ten samples and some rows of weights they stay in first-level cache */
#define MOST 8
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))
#ifdef __AVX__
#define HOLD(x) __asm__("" : "+v"(x)) /* in a register: the compiler would read it again for every product */
#else
#define HOLD(x)
#endif
typedef float Lane __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
#define WIDE(T) ((int64_t)(sizeof(T) / sizeof(float)))

INLINE Half fold(Lane v)
{
    Half low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char *)&v + sizeof low, sizeof high);
    return low + high;
}

INLINE float across(Half v)
{
#if LANES == 16
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

/* z[m][r] += sum_k h[m][k] w[r][k] for M samples and R rows of weights */
INLINE void dots(const int M, const int R, float *z, int64_t outs, const float *h, const float *w, int64_t ins,
                 int64_t width)
{
    const int64_t whole = width - width % LANES, most = width - width % (LANES / 2);
    Lane sum[SAMPLES][ROWS];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int r = 0; r < R; r++) sum[m][r] = (Lane){0};
    for (int64_t k = 0; k < whole; k += LANES) {
        Lane a[ROWS];
        UNROLL for (int r = 0; r < R; r++) a[r] = *(const Lane *)(w + r * ins + k);
        UNROLL for (int m = 0; m < M; m++) {
            Lane b = *(const Lane *)(h + m * ins + k);
            HOLD(b);
            UNROLL for (int r = 0; r < R; r++) sum[m][r] += a[r] * b;
        }
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int r = 0; r < R; r++) {
            Half half = fold(sum[m][r]);
            if (most > whole) half += *(const Half *)(h + m * ins + whole) * *(const Half *)(w + r * ins + whole);
            float s = across(half);
            for (int64_t k = most; k < width; k++) s += h[m * ins + k] * w[r * ins + k];
            z[m * outs + r] += s;
        }
}

INLINE void all_dots(const int R, int64_t n, float *z, int64_t outs, const float *h, const float *w, int64_t ins,
                     int64_t width)
{
    int64_t m = 0;
    for (; m + 5 <= n; m += 5) dots(5, R, z + m * outs, outs, h + m * ins, w, ins, width);
    z += m * outs, h += m * ins;
    switch (n - m) {
    case 4: dots(4, R, z, outs, h, w, ins, width); break;
    case 3: dots(3, R, z, outs, h, w, ins, width); break;
    case 2: dots(2, R, z, outs, h, w, ins, width); break;
    case 1: dots(1, R, z, outs, h, w, ins, width); break;
    }
}

/* z = h w^T + b, with b behind w */
static void forward(float *z, const float *h, const float *w, int64_t n, int64_t ins, int64_t outs)
{
    for (int64_t m = 0; m < n; m++) memcpy(z + m * outs, w + ins * outs, outs * sizeof *z);
    for (int64_t at = 0; at < ins; at += BLOCK) {
        const int64_t width = ins - at < BLOCK ? ins - at : BLOCK;
        int64_t o = 0;
        for (; o + ROWS <= outs; o += ROWS) all_dots(ROWS, n, z + o, outs, h + at, w + o * ins + at, ins, width);
        for (; o < outs; o++) all_dots(1, n, z + o, outs, h + at, w + o * ins + at, ins, width);
    }
}

"""

# What takes columns beside each other: written for lanes, and used for halves of them, too.
COLUMNS = r"""
/* to[r][k] = w[r][k] + sum_m c[m][r] h[m][k] for R rows of weights and V lanes of inputs; less start[r][k] if `less` */
INLINE void patch_Lane(const int R, const int V, const int less, float *to, const float *w, const float *start,
                       const float *c, const float *h, int64_t n, int64_t ins, int64_t outs)
{
    Lane s[OUTER][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) s[r][v] = *(const Lane *)(w + r * ins + v * WIDE(Lane));
    for (int64_t m = 0; m < n; m++) {
        Lane a[2];
        UNROLL for (int v = 0; v < V; v++) a[v] = *(const Lane *)(h + m * ins + v * WIDE(Lane));
        UNROLL for (int r = 0; r < R; r++) {
            const float f = c[m * outs + r];
            UNROLL for (int v = 0; v < V; v++) s[r][v] += a[v] * f;
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) {
            const int64_t at = r * ins + v * WIDE(Lane);
            if (less) s[r][v] -= *(const Lane *)(start + at);
            *(Lane *)(to + at) = s[r][v];
        }
}

/* below[m][k] = sum_o g[m][o] w[o][k] for M samples and V lanes of inputs */
INLINE void mix_Lane(const int M, const int V, float *below, const float *g, const float *w, int64_t ins, int64_t outs)
{
    Lane s[SAMPLES][2];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int v = 0; v < V; v++) s[m][v] = (Lane){0};
    for (int64_t o = 0; o < outs; o++) {
        Lane a[2];
        UNROLL for (int v = 0; v < V; v++) a[v] = *(const Lane *)(w + o * ins + v * WIDE(Lane));
        UNROLL for (int m = 0; m < M; m++) {
            const float f = g[m * outs + o];
            UNROLL for (int v = 0; v < V; v++) s[m][v] += a[v] * f;
        }
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int v = 0; v < V; v++) *(Lane *)(below + m * ins + v * WIDE(Lane)) = s[m][v];
}
"""

REST = r"""
INLINE void patches(const int R, const int less, float *to, const float *w, const float *start, const float *c,
                    const float *h, int64_t n, int64_t ins, int64_t outs, int64_t width)
{
    int64_t k = 0;
    for (; k + 2 * LANES <= width; k += 2 * LANES)
        patch_Lane(R, 2, less, to + k, w + k, start + k, c, h + k, n, ins, outs);
    for (; k + LANES <= width; k += LANES) patch_Lane(R, 1, less, to + k, w + k, start + k, c, h + k, n, ins, outs);
    for (; k + LANES / 2 <= width; k += LANES / 2)
        patch_Half(R, 1, less, to + k, w + k, start + k, c, h + k, n, ins, outs);
    for (; k < width; k++)
        for (int r = 0; r < R; r++) {
            float s = w[r * ins + k];
            for (int64_t m = 0; m < n; m++) s += h[m * ins + k] * c[m * outs + r];
            to[r * ins + k] = less ? s - start[r * ins + k] : s;
        }
}

/* A layer's weights (outs, ins) and its biases behind them: to = w + c^T h, b + sum_m c[m]; less start if `less` */
INLINE void change(const int less, float *to, const float *w, const float *start, const float *c, const float *h,
                   int64_t n, int64_t ins, int64_t outs)
{
    for (int64_t at = 0; at < ins; at += BLOCK) {
        const int64_t width = ins - at < BLOCK ? ins - at : BLOCK;
        int64_t o = 0;
        for (; o + OUTER <= outs; o += OUTER) {
            const int64_t rows = o * ins + at;
            patches(OUTER, less, to + rows, w + rows, start + rows, c + o, h + at, n, ins, outs, width);
        }
        for (; o < outs; o++) {
            const int64_t rows = o * ins + at;
            patches(1, less, to + rows, w + rows, start + rows, c + o, h + at, n, ins, outs, width);
        }
    }
    const int64_t b = ins * outs;
    for (int64_t o = 0; o < outs; o++) {
        float s = w[b + o];
        for (int64_t m = 0; m < n; m++) s += c[m * outs + o];
        to[b + o] = less ? s - start[b + o] : s;
    }
}

static void step(float *to, const float *w, const float *start, const float *c, const float *h, int64_t n, int64_t ins,
                 int64_t outs)
{
    if (start) change(1, to, w, start, c, h, n, ins, outs);
    else change(0, to, w, w, c, h, n, ins, outs);
}

/* The same, and then z = next w^T + b of the next samples, while each row of weights is at hand: a first layer that is
   larger than the cache is fetched twice a step and not three times. */
static void step_and_forward(float *to, const float *w, const float *c, const float *h, int64_t n, int64_t ins,
                             int64_t outs, float *z, const float *next, int64_t more)
{
    const int64_t b = ins * outs;
    for (int64_t o = 0; o < outs; o++) {
        float s = w[b + o];
        for (int64_t m = 0; m < n; m++) s += c[m * outs + o];
        to[b + o] = s;
    }
    for (int64_t m = 0; m < more; m++) memcpy(z + m * outs, to + b, outs * sizeof *z);
    int64_t o = 0;
    for (; o + OUTER <= outs; o += OUTER)
        for (int64_t at = 0; at < ins; at += BLOCK) {
            const int64_t width = ins - at < BLOCK ? ins - at : BLOCK;
            float *rows = to + o * ins + at;
            patches(OUTER, 0, rows, w + o * ins + at, w, c + o, h + at, n, ins, outs, width);
            for (int64_t r = 0; r < OUTER; r += ROWS)
                all_dots(ROWS, more, z + o + r, outs, next + at, rows + r * ins, ins, width);
        }
    for (; o < outs; o++)
        for (int64_t at = 0; at < ins; at += BLOCK) {
            const int64_t width = ins - at < BLOCK ? ins - at : BLOCK;
            float *rows = to + o * ins + at;
            patches(1, 0, rows, w + o * ins + at, w, c + o, h + at, n, ins, outs, width);
            all_dots(1, more, z + o, outs, next + at, rows, ins, width);
        }
}

INLINE void mixes(const int M, float *below, const float *g, const float *w, int64_t ins, int64_t outs)
{
    int64_t k = 0;
    for (; k + 2 * LANES <= ins; k += 2 * LANES) mix_Lane(M, 2, below + k, g, w + k, ins, outs);
    for (; k + LANES <= ins; k += LANES) mix_Lane(M, 1, below + k, g, w + k, ins, outs);
    for (; k + LANES / 2 <= ins; k += LANES / 2) mix_Half(M, 1, below + k, g, w + k, ins, outs);
    for (; k < ins; k++)
        for (int m = 0; m < M; m++) {
            float s = 0.0f;
            for (int64_t o = 0; o < outs; o++) s += g[m * outs + o] * w[o * ins + k];
            below[m * ins + k] = s;
        }
}

/* below = g w where h > 0, else 0 */
static void backward(float *below, const float *g, const float *w, const float *h, int64_t n, int64_t ins, int64_t outs)
{
    int64_t m = 0;
    for (; m + SAMPLES <= n; m += SAMPLES) mixes(SAMPLES, below + m * ins, g + m * outs, w, ins, outs);
    for (; m < n; m++) mixes(1, below + m * ins, g + m * outs, w, ins, outs);
    for (int64_t i = 0; i < n * ins; i++) below[i] = h[i] > 0.0f ? below[i] : 0.0f;
}

/* The mean cross-entropy of z to classes y or, if there are none, to each class's share; z becomes -rate times its
   gradient. For shares of 0 and 1 all bits are those of classes. */
static float cross_entropy(float *z, const int64_t *y, const float *shares, int64_t n, int64_t outs, float rate)
{
    float loss = 0.0f;
    for (int64_t m = 0; m < n; m++) {
        float *row = z + m * outs, most = row[0], total = 0.0f;
        const float *share = y ? 0 : shares + m * outs;
        for (int64_t o = 1; o < outs; o++) most = row[o] > most ? row[o] : most;
        for (int64_t o = 0; o < outs; o++) row[o] -= most, total += expf(row[o]);
        const float level = logf(total);
        if (y) {
            loss += level - row[y[m]];
            for (int64_t o = 0; o < outs; o++)
                row[o] = -rate / (float)n * (expf(row[o]) / total - (o == y[m] ? 1.0f : 0.0f));
            continue;
        }
        float all = 0.0f;
        for (int64_t o = 0; o < outs; o++) all += share[o], loss += share[o] * (level - row[o]);
        for (int64_t o = 0; o < outs; o++)
            row[o] = -rate / (float)n * (expf(row[o]) / total * all - share[o]);
    }
    return loss / (float)n;
}

/* One step on n samples from the model `flat`; the loss before it. The model after it is written into `to`, or what it
   differs by from the model `start` if there is one. `first` holds what the first layer gives for the samples, and is
   overwritten; for `more` samples `next` what it gives afterwards is written into `then`. */
static float one(float *to, const float *flat, const float *start, const float *x, const int64_t *y,
                 const float *shares, int64_t n, float *first, const float *next, int64_t more, float *then,
                 const int64_t *wide, int64_t layers, float rate, float *room)
{
    int64_t at[MOST], end = 0;
    float *free = room, *z = first;
    const float *h[MOST] = {x};
    for (int64_t i = 0; i < layers; i++) {
        const int64_t ins = wide[i], outs = wide[i + 1];
        at[i] = end, end += (ins + 1) * outs;
        if (i) {
            z = free, free += n * outs;
            forward(z, h[i], flat + at[i], n, ins, outs);
        }
        if (i + 1 < layers) {
            for (int64_t j = 0; j < n * outs; j++) z[j] = z[j] > 0.0f ? z[j] : 0.0f;
            h[i + 1] = z;
        }
    }
    const float loss = cross_entropy(z, y, shares, n, wide[layers], rate);
    float *g = z;
    for (int64_t i = layers - 1; i > 0; i--) {
        float *below = free;
        free += n * wide[i];
        backward(below, g, flat + at[i], h[i], n, wide[i], wide[i + 1]);
        step(to + at[i], flat + at[i], start ? start + at[i] : 0, g, h[i], n, wide[i], wide[i + 1]);
        g = below;
    }
    if (next) step_and_forward(to, flat, g, x, n, wide[0], wide[1], then, next, more);
    else step(to, flat, start, g, x, n, wide[0], wide[1]);
    return loss;
}

/* The samples of one step: those of x that `index` names, laid into `room`; all of x where there is no index. */
INLINE const float *samples(float *room, const float *x, const int64_t *index, int64_t n, int64_t ins)
{
    if (!index) return x;
    for (int64_t m = 0; m < n; m++) memcpy(room + m * ins, x + index[m] * ins, ins * sizeof *room);
    return room;
}

/* Some steps of each of `count` models, rows of floats that lie `stride` apart: weights (out, in) and biases of layers
   of wide[0], wide[1] ... numbers. Step t takes n[t] samples, at most 64; x holds where those of the first model's
   first step lie, of its second, ... of the last model's last; y where their classes, or shares where the shares of
   each class. If there is an `index`, it holds as many places, and a step's samples are those of the `held` samples and
   classes at x and y that the n[t] numbers there name. A model starts from its row or, if there is a `from`, from what
   lies there, which is only read. It ends in its row; or, if there is a `to`, what it differs by from `since` is
   written there, and its row holds nothing. `room` holds 4 max(n) floats for each number of all layers but the first,
   and 2 max(n) for each of that. Returns how many classes or indices are out of range; then nothing was done. */
int64_t descend(float *flat, int64_t stride, int64_t count, const float *const *from, float *const *to,
                const float *const *since, const float *const *x, const int64_t *const *y,
                const float *const *shares, const int64_t *const *index, int64_t held, const int64_t *n, int64_t steps,
                const int64_t *wide, int64_t layers, float rate, float *losses, float *room)
{
    const int64_t ins = wide[0], outs = wide[layers];
    int64_t wrong = 0, most = 0, inner = 0, own[64];
    for (int64_t t = 0; t < steps; t++) most = n[t] > most ? n[t] : most;
    for (int64_t i = 1; i <= layers; i++) inner += wide[i];
    for (int64_t i = 0; index && i < count * steps; i++)
        for (int64_t m = 0; m < n[i % steps]; m++) wrong += index[i][m] < 0 || index[i][m] >= held;
    for (int64_t i = 0; y && !wrong && i < count * steps; i++)
        for (int64_t m = 0; m < n[i % steps]; m++) {
            const int64_t class = y[i][index ? index[i][m] : m];
            wrong += class < 0 || class >= outs;
        }
    float *first = room, *then = first + most * wide[1], *free = then + most * wide[1];
    float *here = room + 4 * most * inner, *ahead = here + most * ins;
    for (int64_t row = 0; row < count && !wrong; row++, flat += stride) {
        const float *now = from ? from[row] : flat;
        const float *h = samples(here, x[row * steps], index ? index[row * steps] : 0, n[0], ins);
        forward(first, h, now, n[0], ins, wide[1]);
        for (int64_t t = 0; t < steps; t++) {
            const int64_t i = row * steps + t, more = t + 1 < steps ? n[t + 1] : 0;
            const int64_t *classes = y ? y[i] : 0;
            if (y && index) {
                for (int64_t m = 0; m < n[t]; m++) own[m] = y[i][index[i][m]];
                classes = own;
            }
            const float *next = more ? samples(ahead, x[i + 1], index ? index[i + 1] : 0, more, ins) : 0;
            const int ends = to && !more;
            losses[i] = one(ends ? to[row] : flat, now, ends ? since[row] : 0, h, classes, y ? 0 : shares[i], n[t],
                            first, next, more, then, wide, layers, rate, free);
            float *other = first;
            first = then, then = other;
            other = here, here = ahead, ahead = other;
            h = next, now = flat;
        }
    }
    return wrong;
}
"""

SOURCE = HEAD + COLUMNS + COLUMNS.replace("Lane", "Half") + REST
