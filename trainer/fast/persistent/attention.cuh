// Attention and the output map, by the consumer warps of the persistent kernel: persistent.cu explains it all.
#pragma once

// Sums of q k of a head: 16 rows of this warp, all 64 columns.
FN void scores(float (&sc)[32], const Shared& S, Ring& a, int lane) {
  clear(sc);
  Ring old = a;
#pragma unroll 1
  for (int b = 0; b < HEADB; b++) {
    Ring kq = a; next<ASLOTS>(a); Ring kk = kq;
    if (BPS == 1) { kk = a; next<ASLOTS>(a); }
    bar_wait(S.afull + 8*kq.slot, kq.parity);
    if (BPS == 1) bar_wait(S.afull + 8*kk.slot, kk.parity);
    u32 qa = S.alow + kq.slot*(ABYTES >> 4), ka = BPS == 2 ? qa + 512 : S.alow + kk.slot*(ABYTES >> 4);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) mma<64>(sc, qa + 2*i, ka + 2*i);
    wgmma_commit();
    if (!HOLDS) {
      wgmma_wait<0>();
      if (lane == 0) { bar_arrive(S.aempty + 8*kq.slot); if (BPS == 1) bar_arrive(S.aempty + 8*kk.slot); }
    }
  }
  wgmma_wait<0>();
  if (HOLDS && lane == 0) for (int b = 0; b < QKSLOTS; b++) { bar_arrive(S.aempty + 8*old.slot); next<ASLOTS>(old); }
}

// Softmax over the columns of a lane's rows r0 and r1, as bf16 operands of the next product.
// st: 1/root mean squares of queries, then of keys.
FN void softmax(u32 (&pr)[16], float (&sc)[32], const float* st, int r0, int r1, int t) {
  float q0 = st[r0], q1 = st[r1], top0 = -1e30f, top1 = -1e30f, sum0 = 0.f, sum1 = 0.f;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    float2 kk = *(const float2*)(st + 64 + 8*j + 2*t);
    sc[4*j] *= q0*kk.x; sc[4*j+1] *= q0*kk.y; sc[4*j+2] *= q1*kk.x; sc[4*j+3] *= q1*kk.y;
    top0 = fmaxf(top0, fmaxf(sc[4*j], sc[4*j+1])); top1 = fmaxf(top1, fmaxf(sc[4*j+2], sc[4*j+3]));
  }
  top0 = largest_of_four(top0); top1 = largest_of_four(top1);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    sc[4*j] = __expf(sc[4*j] - top0); sc[4*j+1] = __expf(sc[4*j+1] - top0); sum0 += sc[4*j] + sc[4*j+1];
    sc[4*j+2] = __expf(sc[4*j+2] - top1); sc[4*j+3] = __expf(sc[4*j+3] - top1); sum1 += sc[4*j+2] + sc[4*j+3];
  }
  sum0 = sum_of_four(sum0); sum1 = sum_of_four(sum1);
  float n0 = 1.f/sum0, n1 = 1.f/sum1;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    pr[4*i] = pack(sc[8*i]*n0, sc[8*i+1]*n0); pr[4*i+1] = pack(sc[8*i+2]*n1, sc[8*i+3]*n1);
    pr[4*i+2] = pack(sc[8*i+4]*n0, sc[8*i+5]*n0); pr[4*i+3] = pack(sc[8*i+6]*n1, sc[8*i+7]*n1);
  }
}

// Attention of head s, and its share of the output map for this warpgroup's half of the tile's columns.
FN void attend(float (&acc)[ND/4], const Shared& S, Ring& w, Ring& a, const float* st, u32 statbar, u32 parity, const Place& at) {
  int g = at.lane >> 2, t = at.lane & 3, r0 = 16*(at.warp & 3) + g, r1 = r0 + 8;
  u32 pr[16];
  {
    float sc[32];
    scores(sc, S, a, at.lane);
    bar_wait(statbar, parity);
    softmax(pr, sc, st, r0, r1, t);
  }
  clear(acc);
#pragma unroll 1
  for (int b = 0; b < HEADB; b++) {
    int half = BPS == 2 ? b & 1 : 0;
    if (half == 0) { bar_wait(S.afull + 8*a.slot, a.parity); bar_wait(S.wfull + 8*w.slot, w.parity); }
    float o[32];
    clear(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) mma_reg<64>(o, pr + 4*i, S.alow + a.slot*(ABYTES >> 4) + half*512 + 2*i);
    wgmma_commit(); wgmma_wait<0>();
    u32 ar[16];
#pragma unroll
    for (int i = 0; i < 16; i++) ar[i] = pack(o[2*i], o[2*i+1]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
      mma_reg<ND/2>(acc, ar + 4*i, S.wlow + w.slot*(WBYTES >> 4) + (half*ND + at.group*(ND/2))*8 + 2*i);
    wgmma_commit(); wgmma_wait<0>();
    if (half == BPS - 1) {
      if (at.lane == 0) { bar_arrive(S.aempty + 8*a.slot); bar_arrive(S.wempty + 8*w.slot); }
      next<ASLOTS>(a); next<WSLOTS>(w);
    }
  }
}
