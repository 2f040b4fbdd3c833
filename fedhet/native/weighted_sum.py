"""The weighted sum of many vectors in one pass, compiled, with the bits of torch's sum of one vector after the other.

torch adds one vector at a time: each is read from memory, but the running sum is read and written once per vector,
which costs a third of the time even where it stays in cache. The loop below keeps 16 KB of the sum in the first-level
cache and adds four vectors per pass over it, each term one fused multiply-add in the order given, which is what
`total.add_(x, alpha=c)` does; threads divide the elements, never the order. It is used only after it gave torch's bits
on examples; `status` says whether it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fedhet.native.compiler import Call, Source, Unusable
from fedhet.native.shared_sum import TYPES

LEAST = 1 << 20
"""Fewest elements read by one sum (vectors times length): torch takes 0.2 ms for as many; there is little to gain."""

SHARE = 1 << 20
"""Elements read for each thread, at least."""

SOURCE = r"""
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#define BLOCK 4096   /* floats of the sum that stay in first-level cache */
#define LINE 16      /* floats of a cache line */
#define AHEAD 128    /* floats fetched ahead: the processor's own prefetcher loses track of four streams */
#define MOST 256     /* threads */

typedef struct { float *out; const float *const *rows; const float *c; int64_t k, from, to; } Part;

static void *run(void *given)
{
    const Part *p = given;
    float sum[BLOCK] __attribute__((aligned(64)));
    for (int64_t at = p->from; at < p->to; at += BLOCK) {
        const int64_t width = p->to - at < BLOCK ? p->to - at : BLOCK, whole = width - width % LINE;
        for (int64_t j = 0; j < width; j++) sum[j] = 0.0f;
        int64_t i = 0;
        for (; i + 4 <= p->k; i += 4) {
            const float *restrict x0 = p->rows[i] + at, *restrict x1 = p->rows[i + 1] + at;
            const float *restrict x2 = p->rows[i + 2] + at, *restrict x3 = p->rows[i + 3] + at;
            const float c0 = p->c[i], c1 = p->c[i + 1], c2 = p->c[i + 2], c3 = p->c[i + 3];
            for (int64_t l = 0; l < whole; l += LINE) {
                __builtin_prefetch(x0 + l + AHEAD); __builtin_prefetch(x1 + l + AHEAD);
                __builtin_prefetch(x2 + l + AHEAD); __builtin_prefetch(x3 + l + AHEAD);
                for (int64_t j = l; j < l + LINE; j++)
                    sum[j] = fmaf(c3, x3[j], fmaf(c2, x2[j], fmaf(c1, x1[j], fmaf(c0, x0[j], sum[j]))));
            }
            for (int64_t j = whole; j < width; j++)
                sum[j] = fmaf(c3, x3[j], fmaf(c2, x2[j], fmaf(c1, x1[j], fmaf(c0, x0[j], sum[j]))));
        }
        for (; i < p->k; i++) {
            const float *restrict x = p->rows[i] + at;
            const float c = p->c[i];
            for (int64_t j = 0; j < width; j++) sum[j] = fmaf(c, x[j], sum[j]);
        }
        float *restrict out = p->out + at;
        for (int64_t j = 0; j < width; j++) out[j] = sum[j];
    }
    return 0;
}

void weighted_sum(float *out, const float *const *rows, const float *c, int64_t k, int64_t size, int32_t threads)
{
    Part parts[MOST];
    pthread_t ids[MOST];
    char started[MOST] = {0};
    const int64_t blocks = (size + BLOCK - 1) / BLOCK;
    if (threads > MOST) threads = MOST;
    for (int32_t n = 0; n < threads; n++) {
        const int64_t to = blocks * (n + 1) / threads * BLOCK;
        parts[n] = (Part){out, rows, c, k, blocks * n / threads * BLOCK, to < size ? to : size};
        if (n) started[n] = pthread_create(&ids[n], 0, run, &parts[n]) == 0;
    }
    for (int32_t n = 0; n < threads; n++)
        if (!started[n]) run(&parts[n]);
    for (int32_t n = 0; n < threads; n++)
        if (started[n]) pthread_join(ids[n], 0);
}
"""


def weighted_sum(rows: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> bool:
    """out = sum_i coefficients[i] * rows[i], in that order, on as many threads as torch uses; False if it is not done.

    It is done for contiguous float32 on the CPU, 1-D and of one length, that add up to `LEAST` elements, if the loop
    could be compiled.
    """
    read = len(rows) * len(out)
    if read < LEAST or len(rows) != len(coefficients) or not all(_fits(x, out) for x in (*rows, out)):
        return False
    call = _load()
    if isinstance(call, str):
        return False
    _run(call, rows, coefficients, out, max(1, min(torch.get_num_threads(), read // SHARE)))
    return True


def status() -> str:
    """What computes large sums: "compiled", or "torch (WHY)"."""
    found = _load()
    return f"torch ({found})" if isinstance(found, str) else "compiled"


def path() -> str:
    """Where the compiled loop lies, for `fedhet.native.shared_sum`; empty if there is none."""
    if isinstance(_load(), str):
        return ""
    try:
        return str(_source().place())
    except (Unusable, OSError, RuntimeError):  # gone since it was loaded: the same sum by torch
        return ""


def _fits(x: Tensor, out: Tensor) -> bool:
    here = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and x.data_ptr() % 4 == 0
    return here and x.dim() == 1 and x.shape == out.shape


def _run(call: Call, rows: Sequence[Tensor], c: Sequence[float], out: Tensor, threads: int) -> None:
    n = len(rows)
    addresses, factors = (ctypes.c_void_p * n)(*[x.data_ptr() for x in rows]), (ctypes.c_float * n)(*c)
    call(out.data_ptr(), addresses, factors, n, len(out), threads)


def _source() -> Source:
    return Source("sum", "weighted_sum", SOURCE, ["-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread"])


@cache
def _load() -> Call | str:
    """The compiled loop, or why there is none."""
    call = _source().load(TYPES)
    if isinstance(call, str):
        return call
    return call if _agrees(call) else "the compiled loop rounds otherwise than torch on this processor"


def _agrees(call: Call) -> bool:
    """Whether the loop gives torch's bits: groups of four and rests, ends of blocks, wide exponents, signed zeros."""
    draw = torch.Generator().manual_seed(1)
    for count, size in ((1, 5), (3, 4101), (11, 9001)):
        rows = [torch.randn(size, generator=draw) * 10.0 ** (3 * i - 15) for i in range(count)]
        rows[-1][::7] = -0.0
        factors = [(-1) ** i / (i + 1.7) for i in range(count)]
        total, out = torch.zeros(size), torch.empty(size)
        for x, c in zip(rows, factors, strict=True):
            total.add_(x, alpha=c)
        _run(call, rows, factors, out, 2)
        if not torch.equal(total.view(torch.int32), out.view(torch.int32)):
            return False
    return True
