// Small device helpers shared by the kernels: bf16 packing, matrix-unit products, asynchronous copies and barriers.
//
// Everything here runs on sm_80 and later. On sm_90 and later global to shared copies go through the bulk copy engine
// and complete on an mbarrier; before that they are 16-byte cp.async groups of each lane.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define VOX_BULK_COPY 1
#else
#define VOX_BULK_COPY 0
#endif

namespace vox {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ uint32_t smem_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&v);
}

// c[16 x 8] += a[16 x 16] * b[16 x 8], bf16 operands, f32 accumulators, fragments as PTX defines them.
__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two k16 steps from three 16-byte fragments. Lane (g, t) = (lane / 4, lane % 4) holds eight consecutive k, 8t .. 8t+7,
// of rows g (`low`) and g + 8 (`high`) of the left operand and of column g of the right one. The matrix unit's own k
// order within the 32 differs, but both operands are permuted alike, so the product is the same sum.
__device__ __forceinline__ void mma_k32(float (&c)[4], const uint4& low, const uint4& high, const uint4& b) {
    mma_bf16(c, low.x, high.x, low.y, high.y, b.x, b.y);
    mma_bf16(c, low.z, high.z, low.w, high.w, b.z, b.w);
}

// Loads that skip L1: the data was written by other blocks of the same launch.
__device__ __forceinline__ uint4 load_shared_by_blocks(const void* p) {
    return __ldcg(reinterpret_cast<const uint4*>(p));
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// Makes what the block wrote before a __syncthreads visible to whoever sees the counter.
__device__ __forceinline__ void add_release(uint32_t* p, uint32_t v) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Adds and returns what was there, ordered after the block's writes (before a __syncthreads) and before its reads
// (after one).
__device__ __forceinline__ uint32_t add_acquire_release(uint32_t* p, uint32_t v) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

// Asks for `bytes` (a multiple of 16) from p on to be in L2; below sm_90 for the 128-byte lines that begin there.
__device__ __forceinline__ void prefetch_l2(const char* p, int bytes) {
#if VOX_BULK_COPY
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#else
    for (int i = 0; i < bytes; i += 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i) : "memory");
#endif
}

// Where the chip lets warpgroups trade registers (sm_90a), the four helping warps hand theirs to the eight that compute.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VOX_MORE_REGISTERS 1
#else
#define VOX_MORE_REGISTERS 0
#endif
__device__ __forceinline__ void give_registers() {
#if VOX_MORE_REGISTERS
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
}
__device__ __forceinline__ void take_registers() {
#if VOX_MORE_REGISTERS
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
}

__device__ __forceinline__ void mbarrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t bar) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(uint32_t bar, uint32_t parity) {
#if VOX_BULK_COPY
#define VOX_TRY_WAIT "mbarrier.try_wait.parity.shared.b64"
#else
#define VOX_TRY_WAIT "mbarrier.test_wait.parity.shared.b64"
#endif
    asm volatile("{\n.reg .pred p;\nagain:\n" VOX_TRY_WAIT " p, [%0], %1;\n@!p bra again;\n}\n" ::"r"(bar), "r"(parity)
                 : "memory");
}

#if VOX_BULK_COPY
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Arrives and expects `bytes` more to come in before the phase is complete.
__device__ __forceinline__ void mbarrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Stores to the same place in the shared memory of another block of the cluster and counts the bytes on its barrier.
__device__ __forceinline__ void store_to_peer(float* p, uint32_t bar, uint32_t rank, float v) {
    uint32_t remote, remote_bar;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(smem_address(p)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_bar) : "r"(bar), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(remote),
                 "r"(__float_as_uint(v)), "r"(remote_bar)
                 : "memory");
}
// `bytes` (a multiple of 16) from global to shared memory; completion is counted on `bar`. The data is read once, so it
// is the first to leave L2.
__device__ __forceinline__ void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, uint64_t policy) {
    mbarrier_expect(bar, bytes);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            dst),
        "l"(src), "r"(bytes), "r"(bar), "l"(policy)
        : "memory");
}
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
#else
__device__ __forceinline__ void copy_async_16(uint32_t dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
// Counts an arrival of this lane on `bar` when its copies so far have landed.
__device__ __forceinline__ void copy_arrive(uint32_t bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void copy_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif

}  // namespace vox
