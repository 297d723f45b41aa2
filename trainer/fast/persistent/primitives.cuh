// The PTX instructions of Hopper (sm_90a) that the persistent kernel uses, one function each, by the names of the PTX manual.
// "bar" is an mbarrier in shared memory; addresses of shared memory are 32-bit numbers.
#pragma once
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define FN __device__ __forceinline__

FN u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- mbarriers: a phase ends when all arrivals and all expected bytes have come
FN void bar_init(u32 bar, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(arrivals)); }
FN void bar_inits_seen() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FN void bar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory"); }
FN void bar_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}
// Acquires at the scope of the CTA: at that of the cluster each wait would drop the L1 cache (measured, recipes/LOG.md).
FN void bar_wait(u32 bar, u32 parity) {
  asm volatile("{ .reg .pred p; L: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra E; bra L; E: }"
               :: "r"(bar), "r"(parity) : "memory");
}

// ---- clusters: the shared memory of the other CTA of a pair
FN u32 address_at(u32 address, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
FN void cluster_sync() { asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory"); }
FN void arrive_there(u32 bar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(bar) : "memory");
}
// The bytes count for the barrier there, so that no fence is needed.
FN void store_there(u32 to, float4 v, u32 bar) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
               :: "r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(bar) : "memory");
}

// ---- bulk copies by the copy engine
FN void bulk_load(u32 to, const void* from, u32 bytes, u32 bar, u64 policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               :: "r"(to), "l"(from), "r"(bytes), "r"(bar), "l"(policy) : "memory");
}
FN void bulk_store(void* to, u32 from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" :: "l"(to), "r"(from), "r"(bytes) : "memory");
}
FN void bulk_stores_done() { asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory"); }
// What threads wrote becomes visible to the copy engine, and the reverse.
FN void proxy_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }
FN void proxy_fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
FN u64 policy_evict_first() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
FN u64 policy_evict_last() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// ---- shared memory by address
FN float2 load2(u32 from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
  return v;
}
FN float4 load4(u32 from) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(from) : "memory");
  return v;
}
FN void store2(u32 to, float a, float b) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" :: "r"(to), "f"(a), "f"(b) : "memory"); }
FN void store4(u32 to, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" :: "r"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

// ---- counters in global memory, and the barrier of the consumer warps
FN u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
FN void add_release(u32* p) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(p) : "memory"); }
// A wait of 0.2 s is a fault: the kernel says who waited, and ends.
FN void poll(const u32* counter, u32 target, u32* fault, u32 who) {
  long long begin = clock64();
  while (load_acquire(counter) < target)
    if (clock64() - begin > 400000000LL) { *fault = who; __threadfence(); __trap(); }
}
FN void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// ---- wgmma: a warpgroup's product of 64 x 16 by 16 x N. `mma<N>(sums, a, b)` takes both from shared memory, `mma_reg<N>` the
// first from registers; the specialisations are written by compiling.py (wgmma.cuh). Operands are the low halves of descriptors:
// rows of 128 bytes, swizzled in groups of eight rows (1,024 bytes); 16 columns further is 2 more.
template <int N> __device__ void mma(float (&sums)[N/2], u32 a, u32 b);
template <int N> __device__ void mma_e4m3(float (&sums)[N/2], u32 a, u32 b);  // 32 columns of e4m3 instead of 16 of bf16
template <int N> __device__ void mma_reg(float (&sums)[N/2], const u32* a, u32 b);
FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> FN void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LEFT) : "memory"); }
FN u32 descriptor_low(u32 address) { return (address >> 4) | 0x10000u; }  // addresses in shared memory are below 2^18
FN u64 descriptor(u32 low) {
  u64 whole;
  asm("mov.b64 %0, {%1, %2};" : "=l"(whole) : "r"(low), "n"(0x40000040));
  return whole;
}

// ---- numbers
FN u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
FN float unpack(u32 both, int high) { return __uint_as_float(high ? both & 0xffff0000u : both << 16); }
// Beyond 448 it is 448.
FN u16 pack_e4m3(float low, float high) {
  u16 both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
  return both;
}
FN u32 pack4_e4m3(float a, float b, float c, float d) { return pack_e4m3(a, b) | (u32)pack_e4m3(c, d) << 16; }
FN uint4 pack8(const float (&y)[8]) { return make_uint4(pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7])); }
template <int N> FN float4 four(const float (&acc)[N], int i) { return make_float4(acc[i], acc[i+1], acc[i+2], acc[i+3]); }
template <int N> FN void clear(float (&acc)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) acc[i] = 0.f;
}
// GELU with erf by Abramowitz and Stegun 7.1.26: absolute error of erf below 1.5e-7.
FN float gelu(float x) {
  float a = fabsf(x)*0.70710678f, k = __fdividef(1.f, 1.f + 0.3275911f*a);
  float p = ((((1.061405429f*k - 1.453152027f)*k + 1.421413741f)*k - 0.284496736f)*k + 0.254829592f)*k*__expf(-a*a);
  return x > 0.f ? x - 0.5f*x*p : 0.5f*x*p;
}
FN float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }
FN float sum_of_four(float v) {  // over the four lanes that share a row of a wgmma tile
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
FN float largest_of_four(float v) {
  v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
  return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

// ---- a place in a ring of N slots. Consumers begin at parity 0, producers at 1: the first wait for an empty slot passes.
struct Ring { u32 slot, parity; };
template <int N> FN void next(Ring& ring) {
  if (++ring.slot == N) { ring.slot = 0; ring.parity ^= 1; }
}
