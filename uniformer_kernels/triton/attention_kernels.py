"""Attention over packed queries, keys and values, of whole clips and inside windows of a grid.

One family of kernels for both: a program works on a block of the queries (or keys) of one head of
one window, and a clip is its own only window (``columns`` and ``window`` are None then). Scores are
kept in base 2: ``lse`` is log2 of the sums of exp2 of the scaled scores.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(index, heads, N, columns, window):
    """Sample and head, and a window's first position, width and number of tokens on the grid."""
    head = index % heads
    index = (index // heads).to(tl.int64)
    if window is None:
        return index, head, 0, N, N
    else:
        across, down = tl.cdiv(columns, window), tl.cdiv(N // columns, window)
        left, index = index % across * window, index // across
        top, index = index % down * window, index // down
        wide = tl.minimum(window, columns - left).to(tl.int32)
        tall = tl.minimum(window, N // columns - top).to(tl.int32)
        return index, head, top * columns + left, wide, wide * tall


@triton.jit
def _positions(token, origin, wide, columns):
    """Where a window's tokens lie on the grid, as 64-bit numbers."""
    if columns is None:
        return token.to(tl.int64)
    else:
        return origin + token // wide * columns + token % wide


@triton.jit
def _rows(start, offset, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A head's channels of some tokens; zeros where there are none."""
    c = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (c < D)[None, :]
    return tl.load(start + offset[:, None] + c[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(start, offset, inside, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    c = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (c < D)[None, :]
    tl.store(start + offset[:, None] + c[None, :], value.to(start.dtype.element_ty), mask=mask)


@triton.jit
def _padding(q, bias, steepness, C, window, tokens, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The one key that stands for all positions beyond the grid: scores, the key, its value."""
    missing = 1.0 * window * window - tokens
    c = tl.arange(0, BLOCK_D)
    mask = c < tl.where(missing > 0, D, 0)
    key = tl.load(bias + C + c, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(bias + 2 * C + c, mask=mask, other=0.0).to(tl.float32)
    score = tl.sum(q.to(tl.float32) * key[None, :], 1) * steepness
    score += tl.where(missing > 0, tl.log2(tl.maximum(missing, 1.0)), float("-inf"))
    return score, key, value


@triton.jit
def forward_kernel(
    qkv,
    bias,
    out,
    lse,
    scale,
    N,
    columns,
    window,
    heads,
    blocks,
    SAMPLE,
    TOKEN,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program, C = tl.program_id(0), heads * D
    sample, head, origin, wide, tokens = _place(program // blocks, heads, N, columns, window)
    query = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    at = _positions(query, origin, wide, columns)
    qkv += sample * SAMPLE + head * D
    q = _rows(qkv, at * TOKEN, query < tokens, D, BLOCK_D)
    # With a positive factor, the largest product makes the largest score.
    q = tl.where(scale < 0, -q, q)
    steepness = tl.maximum(tl.abs(scale) * _LOG2E, 1e-30)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if bias is not None:
        bias += head * D
        top, _, value = _padding(q, bias, steepness, C, window, tokens, D, BLOCK_D)
        result += value[None, :]
    whole = tokens // BLOCK_N * BLOCK_N
    for TAIL in tl.static_range(2):
        for first in range(whole if TAIL else 0, tokens if TAIL else whole, BLOCK_N):
            key = first + tl.arange(0, BLOCK_N)
            offset = _positions(key, origin, wide, columns) * TOKEN
            k = _rows(qkv + C, offset, key < tokens, D, BLOCK_D)
            v = _rows(qkv + 2 * C, offset, key < tokens, D, BLOCK_D)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if TAIL:
                s = tl.where((key < tokens)[None, :], s, float("-inf"))
            now = tl.maximum(top, tl.max(s, 1) * steepness)
            p = tl.exp2(s * steepness - now[:, None])
            shrink = tl.exp2(top - now)
            total = total * shrink + tl.sum(p, 1)
            result = tl.dot(p.to(v.dtype), v, result * shrink[:, None], input_precision=PRECISION)
            top = now

    out += sample * N * C + head * D
    _store_rows(out, at * C, query < tokens, result / total[:, None], D, BLOCK_D)
    lse += (sample * heads + head) * N
    tl.store(lse + at, top + tl.log2(total), mask=query < tokens)


@triton.jit
def query_gradient_kernel(
    dout,
    dscore,
    qkv,
    bias,
    out,
    lse,
    delta,
    dqkv,
    partials,
    scale,
    scored,
    N,
    columns,
    window,
    heads,
    blocks,
    SAMPLE,
    TOKEN,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Of a block of queries; ``delta``, the mean slope of every softmax; the padding's part."""
    program, C = tl.program_id(0), heads * D
    sample, head, origin, wide, tokens = _place(program // blocks, heads, N, columns, window)
    query = program % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    at = _positions(query, origin, wide, columns)
    inside = query < tokens
    qkv += sample * SAMPLE + head * D
    output = sample * N * C + head * D
    row = (sample * heads + head) * N
    q = _rows(qkv, at * TOKEN, inside, D, BLOCK_D)
    dy = _rows(dout + output, at * C, inside, D, BLOCK_D)
    y = _rows(out + output, at * C, inside, D, BLOCK_D)
    log_sum = tl.load(lse + row + at, mask=inside, other=float("inf"))
    mean = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    steepness = scale * _LOG2E

    if dscore is not None:
        dscore += sample * N
        share = tl.where(query < scored, 1.0 / (heads * scored), 0.0)
        last = tl.where(program % blocks * BLOCK_M < scored, tokens, 0)
        for first in range(0, last, BLOCK_N):
            key = first + tl.arange(0, BLOCK_N)
            k = _rows(qkv + C, key.to(tl.int64) * TOKEN, key < tokens, D, BLOCK_D)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            p = tl.exp2(
                tl.where((key < tokens)[None, :], s * steepness, float("-inf")) - log_sum[:, None]
            )
            slope = tl.load(dscore + key, mask=key < tokens, other=0.0)
            mean += share * tl.sum(p * slope[None, :], 1)
    tl.store(delta + row + at, mean, mask=inside)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole = tokens // BLOCK_N * BLOCK_N
    for TAIL in tl.static_range(2):
        for first in range(whole if TAIL else 0, tokens if TAIL else whole, BLOCK_N):
            key = first + tl.arange(0, BLOCK_N)
            offset = _positions(key, origin, wide, columns) * TOKEN
            k = _rows(qkv + C, offset, key < tokens, D, BLOCK_D)
            v = _rows(qkv + 2 * C, offset, key < tokens, D, BLOCK_D)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            p = tl.exp2(s * steepness - log_sum[:, None])
            if TAIL:
                p = tl.where((key < tokens)[None, :], p, 0.0)
            dp = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
            if dscore is not None:
                slope = tl.load(dscore + key, mask=key < tokens, other=0.0)
                dp += share[:, None] * slope[None, :]
            ds = p * (dp - mean[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    if bias is not None:
        bias += head * D
        score, key, value = _padding(q, bias, steepness, C, window, tokens, D, BLOCK_D)
        p = tl.exp2(score - log_sum)
        ds = p * (tl.sum(dy.to(tl.float32) * value[None, :], 1) - mean)
        dq += ds[:, None] * key[None, :]
        c = tl.arange(0, BLOCK_D)
        partials += (program // (blocks * heads) * blocks + program % blocks).to(tl.int64) * 2 * C
        partials += head * D
        dkey = tl.sum(ds[:, None] * q.to(tl.float32), 0) * scale
        dvalue = tl.sum(p[:, None] * dy.to(tl.float32), 0)
        tl.store(partials + c, dkey, mask=c < D)
        tl.store(partials + C + c, dvalue, mask=c < D)
    dqkv += sample * N * (3 * C) + head * D
    _store_rows(dqkv, at * (3 * C), inside, dq * scale, D, BLOCK_D)


@triton.jit
def key_gradient_kernel(
    dout,
    dscore,
    qkv,
    lse,
    delta,
    dqkv,
    scale,
    scored,
    N,
    columns,
    window,
    heads,
    blocks,
    SAMPLE,
    TOKEN,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Of a block of keys and their values; scores are [keys, queries] here."""
    program, C = tl.program_id(0), heads * D
    sample, head, origin, wide, tokens = _place(program // blocks, heads, N, columns, window)
    key = program % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    at = _positions(key, origin, wide, columns)
    inside = key < tokens
    qkv += sample * SAMPLE + head * D
    dout += sample * N * C + head * D
    lse += (sample * heads + head) * N
    delta += (sample * heads + head) * N
    k = _rows(qkv + C, at * TOKEN, inside, D, BLOCK_D)
    v = _rows(qkv + 2 * C, at * TOKEN, inside, D, BLOCK_D)
    if dscore is not None:
        slope = tl.load(dscore + sample * N + at, mask=inside, other=0.0)
    steepness = scale * _LOG2E

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, tokens, BLOCK_M):
        query = first + tl.arange(0, BLOCK_M)
        position = _positions(query, origin, wide, columns)
        q = _rows(qkv, position * TOKEN, query < tokens, D, BLOCK_D)
        dy = _rows(dout, position * C, query < tokens, D, BLOCK_D)
        log_sum = tl.load(lse + position, mask=query < tokens, other=float("inf"))
        mean = tl.load(delta + position, mask=query < tokens, other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        p = tl.exp2(s * steepness - log_sum[None, :])
        dv = tl.dot(p.to(dy.dtype), dy, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(dy), input_precision=PRECISION)
        if dscore is not None:
            share = tl.where(query < scored, 1.0 / (heads * scored), 0.0)
            dp += slope[:, None] * share[None, :]
        ds = p * (dp - mean[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    dqkv += sample * N * (3 * C) + head * D
    _store_rows(dqkv + C, at * (3 * C), inside, dk * scale, D, BLOCK_D)
    _store_rows(dqkv + 2 * C, at * (3 * C), inside, dv, D, BLOCK_D)


@triton.jit
def score_kernel(
    qkv,
    lse,
    score,
    scale,
    scored,
    N,
    heads,
    blocks,
    SAMPLE,
    TOKEN,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What a block of keys gets from the first queries, in the mean over them and the heads."""
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    key = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    found = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for head in range(heads):
        start = qkv + sample * SAMPLE + head * D
        k = _rows(start + heads * D, key.to(tl.int64) * TOKEN, key < N, D, BLOCK_D)
        for first in range(0, scored, BLOCK_M):
            query = first + tl.arange(0, BLOCK_M)
            q = _rows(start, query.to(tl.int64) * TOKEN, query < scored, D, BLOCK_D)
            row = lse + (sample * heads + head) * N
            log_sum = tl.load(row + query, mask=query < scored, other=float("inf"))
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            found += tl.exp2(s * (scale * _LOG2E) - log_sum[:, None])
    tl.store(score + sample * N + key, tl.sum(found, 0) / (heads * scored), mask=key < N)
