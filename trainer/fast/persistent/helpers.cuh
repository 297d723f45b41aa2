// Two warps of the persistent kernel that bring what its consumers read: persistent.cu explains it all.
#pragma once

// Until they have done the phase before the last: its per-column numbers, means and deviations are used no more.
FN void wait_for_consumers(const Shared& S, u32 phase) { bar_wait(S.pempty + 8*(phase & 1), ((phase >> 1) & 1) ^ 1); }

// Warp 8: this CTA's weights of all phases, as fast as slots come free.
FN void bring_weights(const Shared& S, const Args& A, int cta) {
  u64 policy = policy_evict_first();
  Ring r{0, 1};
  for (u32 p = 0; p < A.num_phases; p++) {
    const Phase& P = A.phases[p];
    u32 kind = P.kind;
    u32 bytes = slot_rows(kind)*128*BPS, chunks = k_blocks(kind)/BPS;
    const char* w = P.weights + (u64)cta*P.bytes;
#pragma unroll 1
    for (u32 c = 0; c < chunks; c++) {
      bar_wait(S.wempty + 8*r.slot, r.parity);
      bar_expect(S.wfull + 8*r.slot, bytes);
      bulk_load(S.base + r.slot*WBYTES, w, bytes, S.wfull + 8*r.slot, policy);
      w += bytes; next<WSLOTS>(r);
    }
  }
}

// Warp 9: activations, once the counters say that they are written; and tells warp 10 so.
FN void bring_activations(const Shared& S, const Args& A, int cta, int s) {
  u64 policy = policy_evict_last();
  Ring r{0, 1}; u32 told = 0;
  auto tell = [&](u32 p) {
    if (RUNS_AHEAD) { wait_for_consumers(S, p); bar_arrive(S.seen + 8*(told++ & 1)); }
    else bar_arrive(S.seen);
  };
  auto put = [&](const char* first, const char* second) {  // second: of another place, or null
    bar_wait(S.aempty + 8*r.slot, r.parity);
    u32 to = S.base + AT_A + r.slot*ABYTES, bar = S.afull + 8*r.slot;
    bar_expect(bar, ABYTES);
    if (second && BPS == 2) { bulk_load(to, first, BLOCK, bar, policy); bulk_load(to + BLOCK, second, BLOCK, bar, policy); }
    else bulk_load(to, first, ABYTES, bar, policy);
    next<ASLOTS>(r);
  };
  for (u32 p = 0; p < A.num_phases; p++) {
    const Phase& P = A.phases[p];
    const u32* counters = A.counters + P.dep*256;
    if (!into_stream(P.kind)) {
      if (P.kind != KEYS_VALUES) { poll(counters + 160, NCTA, A.fault, 2000 + p); proxy_fence(); }
      tell(p);
      for (int b = 0; b < KB/2; b += BPS) put(P.input + ((cta & 1)*(KB/2) + b)*BLOCK, 0);
    } else if (P.kind == ATTEND) {
      poll(counters + 128 + s, NCTA/HEADS, A.fault, 3000 + p);
      poll(A.counters + P.dep2*256 + 128 + s, NCTA/HEADS, A.fault, 3500 + p);
      proxy_fence(); tell(p);
      for (int b = 0; b < HEADB; b++) {
        const char *q = A.q + (s*HEADB + b)*BLOCK, *k = P.k + (s*HEADB + b)*BLOCK;
        if (BPS == 2) put(q, k); else { put(q, 0); put(k, 0); }
      }
      for (int b = 0; b < HEADB; b += BPS) put(P.v + (s*HEADB + b)*BLOCK, 0);
    } else {
      poll(counters + 128 + s, NCTA/8, A.fault, 4000 + p); proxy_fence();
      for (int b = 0; b < UPB; b += BPS) put(A.hidden + (s*UPB + b)*BLOCK, 0);
    }
  }
}
