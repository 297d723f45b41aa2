// Transformer blocks of one text as ONE kernel, batch 1, 64 positions of width D: all denoiser steps, or both decoders.
//
// At batch 1 the time goes into reading weights: 24 D^2 bytes a block, once per block and step. So the kernel is built around
// a stream of weights that never stops:
// - The grid is persistent: 128 CTAs, one per SM, in clusters of two ("pairs"). Each reads its own slice of every matrix.
// - Weights lie in device memory tiled and swizzled as wgmma wants them in shared memory (layout.py), so that one bulk copy
//   brings a chunk. One warp copies them into a ring of WSLOTS slots and waits for nothing but an empty slot, never for
//   activations: while the CTAs exchange results, the ring fills with the weights of the next phase.
// - Warps 0 to 7 are two warpgroups of consumers, each with half of the CTA's columns. Then one warp each brings weights (8),
//   activations (9), the means and deviations of norms (10), and the per-column numbers of a phase, as biases (11).
//
// A table of phases, four a block, says what to do (phases.py makes it):
//   QKV          queries, keys, values     K is split over the two CTAs of a pair; each sends half of its sums to the other's
//   QUERY        of cross-attention        shared memory (st.async), then owns half of the pair's columns and writes them as
//   KEYS_VALUES  of a context              bf16
//   UP           MLP up, GELU
//   GATE         SiLU, kept for GATED_UP
//   GATED_UP     MLP up, times the gate
//   ATTEND       attention, output map     8 CTAs (s = 0 to 7: a head, or an eighth of the MLP's channels) have partial sums
//   DOWN         MLP down                  for the same D/16 columns ("tile"). These go through L2: CTA s adds up the rows 8s
//   END_STEP     as DOWN, ends a step      to 8s + 7. A step ends so: estimate = x gain; z = c1 z + c2 estimate;
//   END          as DOWN, ends all         x = z + positions + time. All ends so: the estimate is the result
// The residual stream x and the noisy latents z never leave shared memory: a CTA owns 8 rows of D/16 columns of both, float32.
// Norms are folded into the maps: with y = LayerNorm(x), gain g and shift b, W y + bias is
//   (W (g x) - mean (W g)) / deviation + (W b + bias),
// so the owner writes g x as bf16 and the sums of x and x^2 of its part; W g ("colsum") and W b + bias come from the host.
// The norms of queries and keys likewise become factors of the scores' rows and columns.
// With FP8 all maps but that of ATTEND have weights and activations in e4m3, weights with a scale for each row; all else is the same.
//
// Waiting: each phase has counters of its own, all zero at launch, so that nothing is ever reset.
//   [8 tile + s]  warps of partial sums      [128 + s]  CTAs that wrote their share of head s or MLP eighth s
//   [160]         CTAs whose residual stream is written
// Compiled for D, HEADS, NCTA and the ring's WBYTES, WSLOTS, ASLOTS, BPS (blocks of 64 columns a slot); SHARED_BYTES is checked.
#include "primitives.cuh"
#include "wgmma.cuh"
#include "shape.cuh"
#include "helpers.cuh"
#include "attention.cuh"

// ======== consumers: linear maps

// acc = activations x weights, over `chunks` slots of both rings. `skip`: rows of a weight block before this warpgroup's.
template <int N> FN void main_loop(float (&acc)[N/2], u32 skip, u32 rows, int chunks, const Shared& S, Ring& w, Ring& a, int lane) {
  clear(acc);
  u32 last_w = 0, last_a = 0;
#pragma unroll 1
  for (int c = 0; c < chunks; c++) {
    bar_wait(S.wfull + 8*w.slot, w.parity);
    bar_wait(S.afull + 8*a.slot, a.parity);
    u32 wb = S.wlow + w.slot*(WBYTES >> 4) + skip*8, ab = S.alow + a.slot*(ABYTES >> 4);
    wgmma_fence();
#pragma unroll
    for (int b = 0; b < BPS; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if constexpr (FP8) mma_e4m3<N>(acc, ab + 512*b + 2*i, wb + b*rows*8 + 2*i);
        else mma<N>(acc, ab + 512*b + 2*i, wb + b*rows*8 + 2*i);
      }
    wgmma_commit();
    if (c > 0) {  // the products before these are done: their slots are free
      wgmma_wait<1>();
      if (lane == 0) { bar_arrive(S.wempty + 8*last_w); bar_arrive(S.aempty + 8*last_a); }
    }
    last_w = w.slot; last_a = a.slot;
    next<ASLOTS>(a); next<WSLOTS>(w);
  }
  wgmma_wait<0>();
  if (lane == 0) { bar_arrive(S.wempty + 8*last_w); bar_arrive(S.aempty + 8*last_a); }
}

// Adds up both halves of K: the other CTA's columns go there, its sums for ours come here and stay in shared memory.
template <int N> FN void add_halves(const float (&acc)[N/2], const Shared& S, const Place& at, u32 parity) {
  u32 rank = at.cta & 1, to = S.there + AT_HALF + at.tid*16, bar = S.there - S.base + S.xfull, own = S.base + AT_HALF + at.tid*16;
#pragma unroll
  for (int i = 0; i < N/16; i++) store_there(to + i*4096, rank ? four(acc, 4*i) : four(acc, N/4 + 4*i), bar);
  bar_wait(S.xfull, parity);
#pragma unroll
  for (int i = 0; i < N/16; i++) {
    float4 k = rank ? four(acc, N/4 + 4*i) : four(acc, 4*i), v = load4(own + i*4096);
    store4(own + i*4096, v.x + k.x, v.y + k.y, v.z + k.z, v.w + k.w);
  }
  __syncwarp();
}

// Eight columns of a row of queries, keys or values, from column 8j of this CTA; and the sum of their squares.
FN void write_qkv(float (&y)[8], int j, int row, const float* par, const Phase& P, const Args& A, const Place& at) {
  int which = 8*j/QC + (P.kind == KEYS_VALUES), own8 = 8*j % QC, part = at.cta % PARTS, d = part*QC + own8;
  if (which < 2) {
    float sum = 0.f;
#pragma unroll
    for (int e = 0; e < 8; e++) { sum += y[e]*y[e]; if (which == 0) y[e] *= par[2*columns_of(P.kind) + own8 + e]; }
    __stcg((which ? P.key_squares : A.query_squares) + (at.head*SLOTS + part*(QC/8) + own8/8)*64 + row, sum);
    *(uint4*)swizzled((which ? P.k : A.q) + (at.head*HEADB + (d >> 6))*BLOCK, row, (d & 63)*2) = pack8(y);
  } else {  // transposed: the second product of attention runs over rows
    char* block = P.v + (at.head*HEADB + (d >> 6))*BLOCK;
#pragma unroll
    for (int e = 0; e < 8; e++) *(u16*)swizzled(block, (d + e) & 63, row*2) = (u16)pack(y[e], 0.f);
  }
}

// Eight inner channels of the MLP. Those of a gate wait where the same thread will find them.
FN void write_hidden(float (&y)[8], int j, int row, const Phase& P, const Args& A, const Place& at) {
  int col = at.cta*NU + 8*j;
  if (P.kind == GATED_UP) {
    uint4 gate = __ldcg((const uint4*)(A.gates + (row*4*D + col)*2));
    const u32 words[4] = {gate.x, gate.y, gate.z, gate.w};
#pragma unroll
    for (int e = 0; e < 8; e++) y[e] *= unpack(words[e/2], e & 1);
  } else {
#pragma unroll
    for (int e = 0; e < 8; e++) y[e] = P.kind == GATE ? silu(y[e]) : gelu(y[e]);
  }
  if (P.kind == GATE) *(uint4*)(A.gates + (row*4*D + col)*2) = pack8(y);
  else put8(activation(A.hidden, row, col), y);
}

// Norm, bias and what follows, for the sums that add_halves left. par: biases, colsums; st: means, 1/deviations.
FN void finish_linear(const float* par, const float* st, const Phase& P, const Shared& S, const Args& A, const Place& at) {
  const int n = columns_of(P.kind), groups8 = padded(n)/16;
#pragma unroll 1
  for (int item = at.lane; item < groups8*16; item += 32) {
    int g = item & 7, h = (item >> 3) & 1, i = item >> 4, j = at.group*groups8 + i;
    if (8*j >= n) continue;
    int row = 16*(at.warp & 3) + 8*h + g;
    u32 from = (at.warp*32 + 4*g)*16 + h*8 + i*4096;
    float mean = st[row], rstd = st[64 + row], y[8];
#pragma unroll
    for (int q = 0; q < 4; q++) {
      float2 a = load2(S.base + AT_HALF + from + 16*q);
      float2 bias = *(const float2*)(par + 8*j + 2*q), c = *(const float2*)(par + n + 8*j + 2*q);
      if (FP8) { float2 k = *(const float2*)(par + 2*n + QC + 8*j + 2*q); a.x *= k.x; a.y *= k.y; }
      y[2*q] = (a.x - mean*c.x)*rstd + bias.x; y[2*q + 1] = (a.y - mean*c.y)*rstd + bias.y;
    }
    if (P.kind == QKV || P.kind == KEYS_VALUES || P.kind == QUERY) write_qkv(y, j, row, par, P, A, at);
    else write_hidden(y, j, row, P, A, at);
  }
}

// A map behind a norm. Before sums go to the other CTA it must have read those of the phase before: between most phases all CTAs
// wait for each other, but not after KEYS_VALUES and GATE.
template <int N> FN void normed_map(const float* par, const float* st, u32 statbar, u32 parity, u32 exchange, u32 free_parity,
                                    const Phase& P, const Shared& S, const Args& A, Ring& w, Ring& a, const Place& at) {
  if (at.tid == 0) bar_expect(S.xfull, 64*4*N);
  float acc[N/2];
  main_loop<N>(acc, at.group*N, 2*N, KB/2/BPS, S, w, a, at.lane);
  if (free_parity < 2) bar_wait(S.xfree, free_parity);
  add_halves<N>(acc, S, at, exchange & 1);
  bar_wait(statbar, parity);
  finish_linear(par, st, P, S, A, at);
}

// ======== consumers: the residual stream

// Partial sums to the CTAs whose rows they are of: by way of shared memory and the copy engine where they fit.
FN void give_partials(const float (&acc)[ND/4], u32* counters, const Shared& S, const Args& A, const Place& at) {
  int row4 = at.warp & 3;
  float2* ws = (float2*)A.partial;
  if (STAGED) consumers_sync();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float2* to = ws + ((at.tile*8 + 2*row4 + half)*8 + at.s)*(NJ*32) + at.group*(NJ/2)*32 + at.lane;
    u32 stage = S.base + AT_A + (2*row4 + half)*(NJ*256) + at.group*(NJ/2)*256 + at.lane*8;
#pragma unroll
    for (int j = 0; j < NJ/2; j++) {
      if (STAGED) store2(stage + j*256, acc[4*j + 2*half], acc[4*j + 2*half + 1]);
      else __stcg(to + j*32, make_float2(acc[4*j + 2*half], acc[4*j + 2*half + 1]));
    }
  }
  if (STAGED) proxy_fence_shared();
  __syncwarp();
  if (at.lane < 2) {
    if (STAGED) {
      bulk_store(ws + ((at.tile*8 + 2*row4 + at.lane)*8 + at.s)*(NJ*32) + at.group*(NJ/2)*32,
                 S.base + AT_A + (2*row4 + at.lane)*(NJ*256) + at.group*(NJ/2)*256, NJ*128);
      bulk_stores_done();
    }
    add_release(counters + at.tile*8 + 2*row4 + at.lane);
  }
}

// Sums of x and x^2 over this tile's columns, for the norm of the next map.
FN void write_stats(float sum, float square, u32 index, u32* counters, const Shared& S, const Args& A, const Place& at) {
  int g = at.lane >> 2, t = at.lane & 3;
  sum = sum_of_four(sum);
  square = sum_of_four(square);
  if (t == 0) { S.red[(at.warp*8 + g)*2] = sum; S.red[(at.warp*8 + g)*2 + 1] = square; }
  consumers_sync();
  if (at.warp == 0) {
    if (at.lane < 16) {
      int r = at.lane >> 1, which = at.lane & 1; float v = 0.f;
#pragma unroll
      for (int w = 0; w < 8; w++) v += S.red[(w*8 + r)*2 + which];
      A.stats[((index & 1)*16*2 + at.tile*2 + which)*64 + 8*at.s + r] = v;
    }
    __syncwarp();
    if (at.lane == 0) add_release(counters + 160);
  }
}

// x += bias + partial sums, in an order that is always the same; at the end of a step the step; then what the next map reads.
FN void residual(bool begins, const Phase& P, const float* par, u32 index, u32* counters, const Shared& S, const Args& A,
                 const Place& at) {
  int g = at.lane >> 2, t = at.lane & 3, row = 8*at.s + g;
  bool last = P.kind == END, ends = last || P.kind == END_STEP;
  const float2* from = (const float2*)A.partial + ((at.tile*8 + at.s)*8)*(NJ*32) + at.warp*PER*32 + at.lane;
  const float* gain = begins ? A.gain0 + at.tile*ND : par + ND;
  float sum = 0.f, square = 0.f;
  if (!begins) { if (at.lane == 0) poll(counters + at.tile*8 + at.s, 16, A.fault, 1000 + index); __syncwarp(); }
#pragma unroll
  for (int i = 0; i < PER; i++) {
    int own = (at.warp*PER + i)*8 + 2*t, col = at.tile*ND + own;
    float2 x, z;
    float2* xs = (float2*)S.xs + i*256 + at.tid; float2* zs = (float2*)S.zs + i*256 + at.tid;
    if (begins) { z = *(const float2*)(A.z0 + row*D + col); *zs = z; }
    else {
      float2 v[8];
#pragma unroll
      for (int o = 0; o < 8; o++) v[o] = __ldcg(from + o*(NJ*32) + i*32);
      float2 b = *(const float2*)(par + own);
      x = *xs; x.x += b.x; x.y += b.y;
      if (FP8) {
        float2 k = *(const float2*)(par + 4*ND + own);
#pragma unroll
        for (int o = 0; o < 8; o++) { v[o].x *= k.x; v[o].y *= k.y; }
      }
#pragma unroll
      for (int o = 0; o < 8; o++) { x.x += v[o].x; x.y += v[o].y; }
      if (ends) {
        float2 out = *(const float2*)(par + 2*ND + own);
        x.x *= out.x; x.y *= out.y;
        if (last) { *(float2*)(A.latents + row*D + col) = x; continue; }
        z = *zs; z.x = P.c1*z.x + P.c2*x.x; z.y = P.c1*z.y + P.c2*x.y; *zs = z;
      }
    }
    if (begins || ends) {
      float2 add = *(const float2*)((begins ? A.positions : P.positions) + row*D + col);
      float2 time = begins ? *(const float2*)(A.time0 + col) : *(const float2*)(par + 3*ND + own);
      x.x = z.x + add.x + time.x; x.y = z.y + add.y + time.y;
    }
    *xs = x;
    sum += x.x + x.y; square += x.x*x.x + x.y*x.y;
    float2 sc = *(const float2*)(gain + own);
    put2(activation(A.acopy, row, col), x.x*sc.x, x.y*sc.y);
  }
  if (!last) write_stats(sum, square, index, counters, S, A, at);
}

// All phases in turn. "Phase" -1 has no map: it makes the residual stream that the first reads.
FN void consume(const Shared& S, const Args& A, const Place& at) {
  Ring w{0, 0}, a{0, 0}; u32 use = 0, exchanges = 0, frees = 0; bool waits = false;
#pragma unroll 1
  for (int p = -1; p < (int)A.num_phases; p++) {
    u32 index = p < 0 ? A.num_phases : p;
    const Phase P = A.phases[p < 0 ? 0 : p];
    u32* counters = A.counters + index*256;
    const float* par = S.par + (p & 1)*NPAR;
    bool is_stream = p < 0 || into_stream(P.kind);
    if (p >= 0) {
      bar_wait(S.pfull + 8*(p & 1), (p >> 1) & 1);
      bar_wait(S.afull + 8*a.slot, a.parity); bar_wait(S.wfull + 8*w.slot, w.parity);
      u32 parity = (use >> 1) & 1, bar = S.statbar + 8*(use & 1); const float* st = S.stat + (use & 1)*128;
      if (has_norm(P.kind)) use++;
      if (!is_stream) {
        u32 free_parity = waits ? frees++ & 1 : 2, exchange = exchanges++;
        if (P.kind == QKV) normed_map<padded(3*QC)>(par, st, bar, parity, exchange, free_parity, P, S, A, w, a, at);
        else if (P.kind == KEYS_VALUES) normed_map<padded(2*QC)>(par, st, bar, parity, exchange, free_parity, P, S, A, w, a, at);
        else if (P.kind == QUERY) normed_map<padded(QC)>(par, st, bar, parity, exchange, free_parity, P, S, A, w, a, at);
        else normed_map<NU>(par, st, bar, parity, exchange, free_parity, P, S, A, w, a, at);
        consumers_sync();
        waits = P.kind == KEYS_VALUES || P.kind == GATE;
        if (at.tid == 0 && waits) arrive_there(S.there - S.base + S.xfree);
        if (at.tid == 0 && P.kind != GATE)
          add_release(counters + 128 + (P.kind == UP || P.kind == GATED_UP ? at.cta/(NCTA/8) : at.head));
      } else {
        float acc[ND/4];
        if (P.kind == ATTEND) attend(acc, S, w, a, st, bar, parity, at);
        else main_loop<ND/2>(acc, at.group*(ND/2), ND, UPB/BPS, S, w, a, at.lane);
        give_partials(acc, counters, S, A, at);
      }
    }
    if (is_stream) residual(p < 0, P, par, index, counters, S, A, at);
    __syncwarp();
    if (p >= 0 && at.lane == 0) bar_arrive(S.pempty + 8*(p & 1));
  }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) generate(const __grid_constant__ Args A) {
  extern __shared__ __align__(1024) char smem[];
  Shared S; lay_out(S, smem);
  int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, cta = blockIdx.x;
  if (tid == 0) init_barriers(S);
  __syncthreads(); cluster_sync();
  S.there = address_at(S.base, (cta & 1) ^ 1); S.par = (float*)(smem + AT_PAR);
  int tile = (cta >> 4)*2 + (cta & 1), s = (cta >> 1) & 7, head = cta / (NCTA/HEADS);
  if (warp >= 8) {
    if (warp == 8 && lane == 0) bring_weights(S, A, cta);
    else if (warp == 9 && lane == 0) bring_activations(S, A, cta, s);
    else if (warp == 10) {  // mean and 1/deviation of each row for the maps, 1/root mean square of queries and keys for attention
      int use = 0;
      for (u32 p = 0; p < A.num_phases; p++) {
        const Phase& P = A.phases[p];
        if (!has_norm(P.kind)) continue;
        float* to = S.stat + (use & 1)*128;
        if (RUNS_AHEAD) { wait_for_consumers(S, p); bar_wait(S.seen + 8*(use & 1), (use >> 1) & 1); }
        else bar_wait(S.seen, use & 1);
        for (int r = lane; r < 64; r += 32) {
          float first = 0.f, second = 1.f;  // KEYS_VALUES: what it reads has its norm behind it
          if (P.kind == ATTEND) {
            float q = 0.f, k = 0.f;
#pragma unroll 8
            for (int c = 0; c < SLOTS; c++) {
              q += __ldcg(A.query_squares + (s*SLOTS + c)*64 + r); k += __ldcg(P.key_squares + (s*SLOTS + c)*64 + r);
            }
            first = rsqrtf(q/HEAD + QK_EPS); second = rsqrtf(k/HEAD + QK_EPS);
          } else if (P.kind != KEYS_VALUES) {
            float a = 0.f, b = 0.f;
            const float* stats = A.stats + (P.dep & 1)*16*2*64;
#pragma unroll
            for (int c = 0; c < 16; c++) { a += __ldcg(stats + (c*2)*64 + r); b += __ldcg(stats + (c*2 + 1)*64 + r); }
            first = a/D; second = rsqrtf(b/D - first*first + NORM_EPS);
          }
          to[r] = first; to[64 + r] = second;
        }
        __syncwarp();
        if (lane == 0) bar_arrive(S.statbar + 8*(use & 1));
        use++;
      }
    } else if (warp == 11) {  // the per-column numbers of each phase, one phase ahead
      Ring r{0, 1};
      for (u32 p = 0; p < A.num_phases; p++) {
        const Phase P = A.phases[p];
        float* to = S.par + r.slot*NPAR;
        bar_wait(S.pempty + 8*r.slot, r.parity);
        if (!into_stream(P.kind)) {
          const int n = columns_of(P.kind);
          for (int i = lane; i < n; i += 32) { to[i] = P.p0[cta*n + i]; to[n + i] = P.p1[cta*n + i]; }
          if (P.kind == QKV || P.kind == QUERY) for (int i = lane; i < QC; i += 32) to[2*n + i] = P.p2[(cta % (NCTA/HEADS))*QC + i];
          if (FP8) for (int i = lane; i < n; i += 32) to[2*n + QC + i] = P.scale[cta*n + i];
        } else {
          for (int i = lane; i < ND; i += 32) { to[i] = P.p0[tile*ND + i]; to[ND + i] = P.p1[tile*ND + i]; }
          if (P.kind == END_STEP || P.kind == END) for (int i = lane; i < ND; i += 32) to[2*ND + i] = P.p2[tile*ND + i];
          if (P.kind == END_STEP) for (int i = lane; i < ND; i += 32) to[3*ND + i] = P.p3[tile*ND + i];
          if (FP8) for (int i = lane; i < ND; i += 32) to[4*ND + i] = P.scale ? P.scale[tile*ND + i] : 1.f;
        }
        __syncwarp();
        if (lane == 0) bar_arrive(S.pfull + 8*r.slot);
        next<2>(r);
      }
    }
    cluster_sync();
    return;
  }
  consume(S, A, Place{cta, tile, s, head, warp, lane, tid, warp >> 2});
  cluster_sync();
}
