"""Matrices side by side or on top of each other, by compiled code that writes past the cache.

An ordinary store reads the line that it overwrites, so a copy moves every byte three times; a store past the cache
(x86's streaming store) moves it twice, and leaves in the cache what was there. Threads divide rows, never a product:
each number is one product at most, so all bits are torch's, and the loop is used only after it gave them on examples.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fedhet.native.compiler import Call, Source

LEAST = 1 << 18
"""Fewest elements of a result: a smaller one that is soon read again should stay in the cache."""

SHARE = 1 << 18
"""Elements of the result for each thread, at least."""

SOURCE = r"""
#include <pthread.h>
#include <stdint.h>
#define INLINE static inline __attribute__((always_inline))
#define MOST 256   /* threads */

typedef struct {
    float *out; const float *const *parts; const int64_t *widths; const float *scales;
    int64_t k, rows, total, n, of;
} Share;

#ifdef __AVX__
#include <immintrin.h>
#define PAST 1
INLINE void four(float *out, const float *x, const int scaled, __m256 c)
{
    const __m128 v = _mm_loadu_ps(x);
    _mm_stream_ps(out, scaled ? _mm_mul_ps(v, _mm256_castps256_ps128(c)) : v);
}

INLINE void eight(float *out, const float *x, const int scaled, __m256 c)
{
    const __m256 v = _mm256_loadu_ps(x);
    _mm256_stream_ps(out, scaled ? _mm256_mul_ps(v, c) : v);
}

/* How many of n floats were stored past the cache: from where `out` is a multiple of 16 bytes, in fours. */
INLINE int64_t stream(const int even, const int scaled, float *out, const float *x, int64_t n, float c)
{
    int64_t j = 0;
    if (!even)
        for (; j < n && (uintptr_t)(out + j) % 16; j++) out[j] = scaled ? x[j] * c : x[j];
    const __m256 f = _mm256_set1_ps(c);
    if ((uintptr_t)(out + j) % 32 && j + 4 <= n) four(out + j, x + j, scaled, f), j += 4;
    for (; j + 8 <= n; j += 8) eight(out + j, x + j, scaled, f);
    if (j + 4 <= n) four(out + j, x + j, scaled, f), j += 4;
    return j;
}
#else
#define PAST 0
#define stream(even, scaled, out, x, n, c) 0
#define _mm_sfence()
#endif

/* Some of the rows or, where there are fewer rows than threads, a piece of every part of each. `even`: every part of
   every row is at a multiple of 16 bytes, and as long. */
INLINE void fill(const Share *s, const int even, const int scaled)
{
    const int whole = s->rows >= s->of;
    const int64_t first = whole ? s->rows * s->n / s->of : 0, last = whole ? s->rows * (s->n + 1) / s->of : s->rows;
    for (int64_t r = first; r < last; r++) {
        float *out = s->out + r * s->total;
        for (int64_t i = 0; i < s->k; out += s->widths[i++]) {
            const int64_t w = s->widths[i];
            const int64_t from = whole ? 0 : w * s->n / s->of, to = whole ? w : w * (s->n + 1) / s->of;
            const float *x = s->parts[i] + r * w, c = scaled ? s->scales[i] : 1.0f;
            int64_t j = from + stream(even, scaled, out + from, x + from, to - from, c);
            if (!even || !PAST)
                for (; j < to; j++) out[j] = scaled ? x[j] * c : x[j];
        }
    }
}

static void *run(void *given)
{
    const Share *s = given;
    int even = s->rows >= s->of && (uintptr_t)s->out % 16 == 0;
    for (int64_t i = 0; i < s->k; i++) even &= s->widths[i] % 4 == 0;
    if (even && s->scales) fill(s, 1, 1);
    else if (even) fill(s, 1, 0);
    else if (s->scales) fill(s, 0, 1);
    else fill(s, 0, 0);
    _mm_sfence();
    return 0;
}

/* Parts of `rows` rows side by side, each times its own scale unless there are none. */
void stack(float *out, const float *const *parts, const int64_t *widths, const float *scales, int64_t k, int64_t rows,
           int32_t threads)
{
    Share shares[MOST];
    pthread_t ids[MOST];
    char started[MOST] = {0};
    int64_t total = 0;
    for (int64_t i = 0; i < k; i++) total += widths[i];
    if (threads > MOST) threads = MOST;
    for (int32_t n = 0; n < threads; n++) {
        shares[n] = (Share){out, parts, widths, scales, k, rows, total, n, threads};
        if (n) started[n] = pthread_create(&ids[n], 0, run, &shares[n]) == 0;
    }
    for (int32_t n = 0; n < threads; n++)
        if (!started[n]) run(&shares[n]);
    for (int32_t n = 0; n < threads; n++)
        if (started[n]) pthread_join(ids[n], 0);
}
"""


def stack(parts: Sequence[Tensor], out: Tensor, scales: Sequence[float] | None = None, *, dim: int) -> bool:
    """Fill `out` with matrices on top of each other (`dim` 0) or side by side (1), each times its scale; False if it is
    not done.

    It is done for contiguous float32 on the CPU that make up a result of `LEAST` elements or more, if the loop could be
    compiled.
    """
    if out.numel() < LEAST or not _fits(parts, out, dim) or (scales is not None and len(scales) != len(parts)):
        return False
    call = _load()
    if isinstance(call, str):
        return False
    _run(call, parts, out, scales, dim, max(1, min(torch.get_num_threads(), out.numel() // SHARE)))
    return True


def status() -> str:
    """What makes large stacks: "compiled", or "torch (WHY)"."""
    found = _load()
    return f"torch ({found})" if isinstance(found, str) else "compiled"


def _fits(parts: Sequence[Tensor], out: Tensor, dim: int) -> bool:
    """Whether the loop takes these, and gains: short rows that begin anywhere in 16 bytes cannot go past the cache."""
    if any(x.dim() != 2 or x.shape[1 - dim] != out.shape[1 - dim] for x in (out, *parts)):
        return False
    widths = [p.shape[dim] for p in parts]
    if sum(widths) != out.shape[dim] or (dim == 1 and (out.data_ptr() % 16 or any(w % 4 for w in widths))):
        return False
    return out.dtype == torch.float32 and all(
        x.is_contiguous() and x.is_cpu and x.data_ptr() % 4 == 0 for x in (*parts, out)
    )


def _run(
    call: Call, parts: Sequence[Tensor], out: Tensor, scales: Sequence[float] | None, dim: int, threads: int
) -> None:
    """On top of each other is side by side in one row."""
    k, rows = len(parts), out.shape[0] if dim else 1
    addresses = (ctypes.c_void_p * k)(*[p.data_ptr() for p in parts])
    widths = (ctypes.c_int64 * k)(*[p.shape[1] if dim else p.numel() for p in parts])
    factors = None if scales is None else (ctypes.c_float * k)(*scales)
    call(out.data_ptr(), addresses, widths, factors, k, rows, threads)


@cache
def _load() -> Call | str:
    """The compiled loop, or why there is none."""
    pointer, many = ctypes.c_void_p, ctypes.c_int64
    source = Source("stack", "stack", SOURCE, ["-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread"])
    call = source.load([*[pointer] * 4, many, many, ctypes.c_int32])
    if isinstance(call, str):
        return call
    return call if _agrees(call) else "the compiled loop gives other bits than torch on this processor"


def _agrees(call: Call) -> bool:
    """Whether the loop gives torch's bits: even and odd widths, parts anywhere in a line, wide exponents, zeros."""
    draw = torch.Generator().manual_seed(1)
    for rows, sizes in ((37, (64, 4, 4, 300)), (5, (3, 1, 270, 8)), (1, (4097, 5))):
        count = 1 + rows * sum(sizes)
        room = torch.randn(count, generator=draw) * 10.0 ** (torch.arange(count) % 38 - 19)
        room[::7] = -0.0
        parts = [p.view(rows, w) for p, w in zip(torch.split(room[1:], [rows * w for w in sizes]), sizes, strict=True)]
        scales = [(-1) ** i / (i + 1.7) for i in range(len(sizes))]
        wanted = torch.cat(parts, 1), torch.cat([p * c for p, c in zip(parts, scales, strict=True)], 1)
        for expected, factors in zip(wanted, (None, scales), strict=True):
            out = torch.empty_like(expected)
            _run(call, parts, out, factors, 1, 2)
            if not torch.equal(out.view(torch.int32), expected.view(torch.int32)):
                return False
    return True
