// Laboratory for decoder.cu: correctness against a naive reference, bit-stability, timing.
// build: nvcc -O3 -std=c++17 -arch=sm_90a -o decoder_lab decoder_lab.cu ; run: decoder_lab check|time|trace|small
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <string>
#include <algorithm>
#include <cmath>
#ifdef LAB_TRACE
__device__ long long lab_trace[256 * 256 * 4];
#define VOX_MARK(ph, what) if (threadIdx.x == 0) lab_trace[(blockIdx.x * 256 + (ph)) * 4 + (what)] = clock64();
#endif
#ifndef KERNEL
#define KERNEL "decoder.cu"
#endif
#include KERNEL
using namespace vox;
#define CK(x) do { cudaError_t e_ = (x); if (e_ != cudaSuccess) { printf("CUDA error %s at %s:%d: %s\n", #x, __FILE__, __LINE__, cudaGetErrorString(e_)); exit(1);} } while (0)

__host__ __device__ inline uint32_t hash3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t h = a * 0x9E3779B1u ^ (b * 0x85EBCA77u + 0x7F4A7C15u) ^ (c * 0xC2B2AE3Du + 0x165667B1u);
    h ^= h >> 15; h *= 0x2C1B3C6Du; h ^= h >> 12; h *= 0x297A2D39u; h ^= h >> 15; return h;
}
__host__ __device__ inline float unit(uint32_t h) { return (h >> 8) * (2.0f / 16777216.0f) - 1.0f; }
__device__ inline float weight_at(uint32_t m, int n, int k, float s) { return __bfloat162float(__float2bfloat16_rn(unit(hash3(m, n, k)) * s)); }

struct Cfg { int dim, heads, kv, hidden, vocab, layers, window, cap; int wos, w2s; };
// logical row of packed row n of matrix kind: returns matrix id salt and row, or -1 for padding
__device__ inline float logical(const Cfg c, int layer, int kind, int n, int k) {
    uint32_t salt = layer * 8 + kind + 1;
    if (kind == 0) { int N = (c.heads + 2 * c.kv) * 128; if (n >= N || k >= c.dim) return 0; return weight_at(salt, n, k, 1.7f * rsqrtf(c.dim)); }
    if (kind == 1) { if (n >= c.dim) return 0; return weight_at(salt, n, k, 1.7f * rsqrtf(c.heads * 128)); }
    if (kind == 2) { int j = n / 16, r = n % 16; int f = j * 8 + (r & 7); if (f >= c.hidden || k >= c.dim) return 0; return weight_at(salt + (r >= 8 ? 4 : 0), f, k, 1.7f * rsqrtf(c.dim)); }
    if (kind == 3) { if (n >= c.dim || k >= c.hidden) return 0; return weight_at(salt, n, k, 2.5f * rsqrtf(c.hidden)); }
    if (n >= c.vocab || k >= c.dim) return 0; return weight_at(77777, n, k, 1.7f * rsqrtf(c.dim));
}
__global__ void pack(bf16* out, Cfg c, int layer, int kind, int N, int Kp) {
    size_t total = (size_t)N * Kp;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < total; i += (size_t)gridDim.x * blockDim.x) {
        int kk = i % 32; int r = (i / 32) % 16; size_t tile = i / 512; int kb = tile % (Kp / 32); int nt = tile / (Kp / 32);
        out[i] = __float2bfloat16_rn(logical(c, layer, kind, nt * 16 + r, kb * 32 + kk));
    }
}
__device__ inline float kvval(int stream, int layer, int which, int pos, int head, int d) {
    return __bfloat162float(__float2bfloat16_rn(unit(hash3(stream * 131 + layer * 7919 + which * 104729 + 5, pos, head * 128 + d)) * (which ? 1.0f : 2.0f)));
}
// fills history positions [max(0,len-cap), len); everything else zero
__global__ void fill_cache(bf16* base, Cfg c, int stream, int len) {
    size_t plane = (size_t)c.kv * c.cap * 128, total = plane * 2 * c.layers;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < total; i += (size_t)gridDim.x * blockDim.x) {
        int layer = i / (2 * plane); int which = (i / plane) % 2; size_t j = i % plane; int head = j / ((size_t)c.cap * 128); size_t q = j % ((size_t)c.cap * 128);
        int slot, d;
        if (!which) { slot = q / 128; d = q % 128; } else { slot = q / 4096 * 32 + q % 32; d = q / 32 % 128; }
        int pos = -1; if (len > 0) { int last = len - 1; int pl = last - ((last % c.cap - slot + c.cap) % c.cap); pos = pl; }
        base[i] = __float2bfloat16_rn(pos >= 0 ? kvval(stream, layer, which, pos, head, d) : 0.0f);
    }
}
// ---------------- reference ----------------
__device__ float rb(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }
struct RefRow { int stream, pos, len, audio, delay; };  // len: history length of the stream before the pass
__global__ void ref_embed(Cfg c, const int* tok, const float* const* audio, float* h) {
    int r = blockIdx.x; for (int k = threadIdx.x; k < c.dim; k += blockDim.x) h[(size_t)r * c.dim + k] = logical(c, 0, 4, tok[r], k) + (audio[r] ? audio[r][k] : 0);
}
__global__ void ref_norm(Cfg c, const float* h, const float* w, const float* const* ada, int layer, float* x, float eps) {
    int r = blockIdx.x; __shared__ double acc[256]; double s = 0;
    for (int k = threadIdx.x; k < c.dim; k += blockDim.x) { double v = h[(size_t)r * c.dim + k]; s += v * v; }
    acc[threadIdx.x] = s; __syncthreads();
    for (int o = 128; o; o >>= 1) { if (threadIdx.x < o) acc[threadIdx.x] += acc[threadIdx.x + o]; __syncthreads(); }
    double rs = 1.0 / sqrt(acc[0] / c.dim + eps);
    for (int k = threadIdx.x; k < c.dim; k += blockDim.x) { float f = h[(size_t)r * c.dim + k] * w[k]; if (ada && ada[r]) f *= 1 + ada[r][(size_t)layer * c.dim + k]; x[(size_t)r * c.dim + k] = rb(f) * rs; }
}
__global__ void ref_gemm(Cfg c, int layer, int kind, const float* x, int N, int K, float* y) {  // warp per (n,row)
    int gw = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32; if (gw >= N) return; int n = gw, r = blockIdx.y;
    double s = 0; for (int k = lane; k < K; k += 32) s += (double)logical(c, layer, kind, n, k) * x[(size_t)r * K + k];
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o); if (!lane) y[(size_t)r * N + n] = s;
}
__global__ void ref_rope(Cfg c, float* y, const RefRow* rr, const float* inv, float* newkv) {  // in place; N = (H+2kv)*128
    int r = blockIdx.x, N = (c.heads + 2 * c.kv) * 128;
    for (int p = threadIdx.x; p < (c.heads + c.kv) * 64; p += blockDim.x) { double a = (double)((float)rr[r].pos * inv[p % 64]); double cs = cos(a), sn = sin(a);
        float* q = y + (size_t)r * N + p * 2; float u = q[0], v = q[1]; q[0] = rb(u * cs - v * sn); q[1] = rb(u * sn + v * cs); }
    for (int p = (c.heads + c.kv) * 128 + threadIdx.x; p < N; p += blockDim.x) y[(size_t)r * N + p] = rb(y[(size_t)r * N + p]);
}
__global__ void ref_attn(Cfg c, int layer, const float* y, const RefRow* rr, int rows, float* out) {  // block per (row, head), 128 threads
    int r = blockIdx.x, h = blockIdx.y, N = (c.heads + 2 * c.kv) * 128, kh = h / (c.heads / c.kv), d = threadIdx.x; RefRow me = rr[r];
    __shared__ float q[128]; __shared__ float red[128]; q[d] = y[(size_t)r * N + h * 128 + d]; __syncthreads();
    int lo = max(0, me.pos - c.window + 1); float m = -INFINITY; double l = 0, o = 0;
    // two passes, thread-parallel over positions for scores
    extern __shared__ float sc[];
    for (int p = lo + d; p <= me.pos; p += 128) { double s = 0; int src = -1; if (p >= me.len) for (int i = 0; i < rows; i++) if (rr[i].stream == me.stream && rr[i].pos == p) src = i;
        for (int k = 0; k < 128; k++) s += (double)q[k] * (src >= 0 ? y[(size_t)src * N + (c.heads + kh) * 128 + k] : kvval(me.stream, layer, 0, p, kh, k));
        sc[p - lo] = s * 0.08838834764831845; }
    __syncthreads();
    for (int p = lo; p <= me.pos; p++) m = fmaxf(m, sc[p - lo]);
    for (int p = lo; p <= me.pos; p++) { double w = exp((double)sc[p - lo] - m); l += w; int src = -1; if (p >= me.len) for (int i = 0; i < rows; i++) if (rr[i].stream == me.stream && rr[i].pos == p) src = i;
        o += w * (src >= 0 ? y[(size_t)src * N + (c.heads + c.kv + kh) * 128 + d] : kvval(me.stream, layer, 1, p, kh, d)); }
    out[(size_t)r * c.heads * 128 + h * 128 + d] = rb(o / l);
}
__global__ void ref_add(float* h, const float* y, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) h[i] += y[i]; }
__global__ void ref_swiglu(Cfg c, const float* y, float* a) { int r = blockIdx.x, T = (c.hidden + 7) / 8; for (int f = threadIdx.x; f < c.hidden; f += blockDim.x) { float u = y[(size_t)r * T * 16 + f / 8 * 16 + f % 8], v = y[(size_t)r * T * 16 + f / 8 * 16 + 8 + f % 8]; a[(size_t)r * c.hidden + f] = rb(u / (1 + expf(-u)) * v); } }

template <class T> T* dalloc(size_t n) { T* p; CK(cudaMalloc(&p, n * sizeof(T) + 256)); CK(cudaMemset(p, 0, n * sizeof(T) + 256)); return p; }
template <class T> T* up(const std::vector<T>& v) { T* p = dalloc<T>(v.size()); CK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice)); return p; }

typedef void (*Kern)(const DecoderPass);
struct Variant { int rows; Kern k; };
static std::vector<Variant> variants() { return {{8, decoder_pass_1}, {16, decoder_pass_2}, {32, decoder_pass_4}, {40, decoder_pass_5}, {64, decoder_pass_8}}; }

struct Lab {
    Cfg c; DecoderPass p{}; std::vector<bf16*> caches; int sms; int stages; float *anorm, *fnorm, *lnorm, *inv; std::vector<DecoderLayer> layers; bf16* cacheblk; size_t cache_elems; float* ada; float* audio;
    int *d_shape, *d_pos, *d_tok; int2* d_groups; const float **d_audio, **d_ada; bf16** d_cache;
    Lab(Cfg c_, int streams, bool logits) : c(c_) {
        cudaDeviceProp pr; CK(cudaGetDeviceProperties(&pr, 0)); sms = pr.multiProcessorCount;
        stages = getenv("STAGES") ? atoi(getenv("STAGES")) : 12;
        int Kd = (c.dim + 63) / 64 * 64, Kh = (c.hidden + 63) / 64 * 64, Kq = c.heads * 128;
        auto mk = [&](int layer, int kind, int N, int K) { N = (N + 15) / 16 * 16; bf16* w = dalloc<bf16>((size_t)N * K); pack<<<sms * 8, 256>>>(w, c, layer, kind, N, K); CK(cudaGetLastError()); return w; };
        std::vector<float> nw(c.dim * (2 * c.layers + 1)); for (size_t i = 0; i < nw.size(); i++) nw[i] = 1 + 0.2f * unit(hash3(991, i, 3));
        anorm = up(nw);
        for (int l = 0; l < c.layers; l++) layers.push_back({mk(l, 0, (c.heads + 2 * c.kv) * 128, Kd), mk(l, 1, c.dim, Kq), mk(l, 2, (c.hidden + 7) / 8 * 16, Kd), mk(l, 3, c.dim, Kh), anorm + (2 * l) * c.dim, anorm + (2 * l + 1) * c.dim});
        p.dim = c.dim; p.n_heads = c.heads; p.n_kv_heads = c.kv; p.hidden = c.hidden; p.vocab = c.vocab; p.n_layers = c.layers; p.window = c.window; p.capacity = c.cap; p.wo_splits = c.wos; p.w2_splits = c.w2s; p.eps = 1e-5f;
        p.row_stride = 64; p.max_chunks = c.cap / kChunk + 1; p.stages = stages; p.phase_begin = 0; p.phase_end = 5 * c.layers + 2;
        for (int l = 0; l < c.layers; l++) p.layers[l] = layers[l]; p.final_norm = anorm + 2 * c.layers * c.dim; p.head = mk(0, 4, c.vocab, Kd);
        std::vector<float> f(64); for (int j = 0; j < 64; j++) f[j] = (float)pow(1e6, -2.0 * j / 128); inv = up(f); p.inverse_frequency = inv;
        int ndelay = 3; std::vector<float> ad(ndelay * c.layers * c.dim), au(64 * c.dim); for (size_t i = 0; i < ad.size(); i++) ad[i] = 0.3f * unit(hash3(55, i, 9)); for (size_t i = 0; i < au.size(); i++) au[i] = unit(hash3(56, i, 9)); ada = up(ad); audio = up(au);
        p.shape = d_shape = dalloc<int>(2); p.groups = d_groups = dalloc<int2>(64); p.position = d_pos = dalloc<int>(64); p.token = d_tok = dalloc<int>(64); p.audio = (const float* const*)(d_audio = dalloc<const float*>(64)); p.ada = (const float* const*)(d_ada = dalloc<const float*>(64)); p.cache = (bf16* const*)(d_cache = dalloc<bf16*>(64));
        p.residual = dalloc<float>(64 * c.dim); p.squares = dalloc<float>(64 * c.dim / 16); p.rope = dalloc<float2>(64 * 64); p.normed = dalloc<bf16>(64 * Kd); p.query = dalloc<bf16>(64 * Kq); p.attended = dalloc<bf16>(64 * Kq); p.activated = dalloc<bf16>(64 * Kh);
        p.slices = dalloc<float>((size_t)std::max(c.wos, c.w2s) * c.dim * 64); p.partial = dalloc<float>((size_t)64 * c.heads * p.max_chunks * 128); p.partial_stats = dalloc<float2>((size_t)64 * c.heads * p.max_chunks);
        p.counters = dalloc<uint32_t>(4 + c.dim / 16 + 64 * c.kv); p.best = dalloc<unsigned long long>(64); p.next = dalloc<int>(64); p.next_logit = dalloc<float>(64); p.logits = logits ? dalloc<float>((size_t)64 * c.vocab) : nullptr;
        cache_elems = (size_t)c.layers * 2 * c.kv * c.cap * 128;
        for (int s = 0; s < streams; s++) caches.push_back(dalloc<bf16>(cache_elems));
        for (auto& v : variants()) { CK(cudaFuncSetAttribute(v.k, cudaFuncAttributeMaxDynamicSharedMemorySize, smem(v.k))); }
        CK(cudaDeviceSynchronize());
    }
    int nt(Kern k) { for (auto& v : variants()) if (v.k == k) return v.rows / 8; return 0; }
    int stages_of(Kern k) { return nt(k) > 2 ? std::min(stages, 11) : stages; }
    int smem(Kern k) {
#ifdef LAB_SM80
        return kMiscBytes + reduce_bytes(nt(k)) + 8 * 4 * kPiece;
#else
        return kMiscBytes + reduce_bytes(nt(k)) + kExchangeBytes + 8 * stages_of(k) * kPiece;
#endif
    }
    void fill(int s, int len) { fill_cache<<<sms * 8, 256>>>(caches[s], c, s, len); CK(cudaGetLastError()); }
    std::vector<int> tok; std::vector<RefRow> rows;
    void set(const std::vector<RefRow>& r) {
        rows = r; int n = r.size(); int per = 16 / (c.heads / c.kv); std::vector<int2> g; std::vector<int> pos(n); tok.resize(n); std::vector<const float*> au(n), ad(n); std::vector<bf16*> ca(n);
        for (int i = 0; i < n; i++) { pos[i] = r[i].pos; tok[i] = hash3(r[i].stream, r[i].pos, 17) % c.vocab; au[i] = r[i].audio < 0 ? nullptr : audio + (size_t)(r[i].audio % 64) * c.dim; ad[i] = r[i].delay < 0 ? nullptr : ada + (size_t)r[i].delay * c.layers * c.dim; ca[i] = caches[r[i].stream];
            if (!g.empty() && r[i - 1].stream == r[i].stream && r[i - 1].pos + 1 == r[i].pos && g.back().y < per) g.back().y++; else g.push_back({i, 1}); }
        int sh[2] = {n, (int)g.size()};
        CK(cudaMemcpy(d_shape, sh, 8, cudaMemcpyHostToDevice)); CK(cudaMemcpy(d_groups, g.data(), g.size() * 8, cudaMemcpyHostToDevice)); CK(cudaMemcpy(d_pos, pos.data(), n * 4, cudaMemcpyHostToDevice)); CK(cudaMemcpy(d_tok, tok.data(), n * 4, cudaMemcpyHostToDevice)); CK(cudaMemcpy((void*)d_audio, au.data(), n * 8, cudaMemcpyHostToDevice)); CK(cudaMemcpy((void*)d_ada, ad.data(), n * 8, cudaMemcpyHostToDevice)); CK(cudaMemcpy((void*)d_cache, ca.data(), n * 8, cudaMemcpyHostToDevice));
    }
    void launch(Kern k, DecoderPass q, cudaStream_t s = 0, int blocks = 0) { q.stages = stages_of(k); void* a[] = {&q}; CK(cudaLaunchCooperativeKernel((void*)k, dim3(blocks ? blocks : sms), dim3(kBlock), a, smem(k), s)); }
    Kern pick(int n) { for (auto& v : variants()) if (n <= v.rows) return v.k; return nullptr; }
    struct Out { std::vector<float> logits, res; std::vector<int> next; };
    Out run(Kern k, bool split = false) {
        int n = rows.size(); if (p.logits) CK(cudaMemset(p.logits, 0xff, (size_t)n * c.vocab * 4));
        if (!split) launch(k, p); else { DecoderPass q = p; for (int ph = 0; ph < p.phase_end; ph++) { q.phase_begin = ph; q.phase_end = ph + 1; if (ph == p.phase_end - 1) q.phase_end = ph + 1; launch(k, q); } }
        CK(cudaDeviceSynchronize()); Out o; o.next.resize(n); o.res.resize(n * c.dim); o.logits.resize(p.logits ? (size_t)n * c.vocab : 0);
        CK(cudaMemcpy(o.next.data(), p.next, n * 4, cudaMemcpyDeviceToHost)); CK(cudaMemcpy(o.res.data(), p.residual, n * c.dim * 4, cudaMemcpyDeviceToHost)); if (p.logits) CK(cudaMemcpy(o.logits.data(), p.logits, o.logits.size() * 4, cudaMemcpyDeviceToHost)); return o;
    }
    Out ref() {
        int n = rows.size(), Nq = (c.heads + 2 * c.kv) * 128, Tn = (c.hidden + 7) / 8 * 16; RefRow* rr = up(rows);
        float *h = dalloc<float>(n * c.dim), *x = dalloc<float>(n * c.dim), *y = dalloc<float>((size_t)n * std::max(std::max(Nq, Tn), c.vocab)), *a = dalloc<float>((size_t)n * std::max(c.hidden, c.heads * 128));
        auto gemm = [&](int l, int kind, const float* xx, int N, int K) { ref_gemm<<<dim3((N + 7) / 8, n), 256>>>(c, l, kind, xx, N, K, y); CK(cudaGetLastError()); };
        ref_embed<<<n, 256>>>(c, d_tok, p.audio, h); int sm = (c.window + 128) * 4; CK(cudaFuncSetAttribute(ref_attn, cudaFuncAttributeMaxDynamicSharedMemorySize, sm));
        for (int l = 0; l < c.layers; l++) {
            ref_norm<<<n, 256>>>(c, h, layers[l].attention_norm, nullptr, l, x, p.eps); gemm(l, 0, x, Nq, c.dim); ref_rope<<<n, 256>>>(c, y, rr, inv, nullptr);
            ref_attn<<<dim3(n, c.heads), 128, sm>>>(c, l, y, rr, n, a); CK(cudaGetLastError()); gemm(l, 1, a, c.dim, c.heads * 128); ref_add<<<(n * c.dim + 255) / 256, 256>>>(h, y, n * c.dim);
            ref_norm<<<n, 256>>>(c, h, layers[l].ffn_norm, p.ada, l, x, p.eps); gemm(l, 2, x, Tn, c.dim); ref_swiglu<<<n, 256>>>(c, y, a); gemm(l, 3, a, c.dim, c.hidden); ref_add<<<(n * c.dim + 255) / 256, 256>>>(h, y, n * c.dim);
        }
        ref_norm<<<n, 256>>>(c, h, p.final_norm, nullptr, 0, x, p.eps); gemm(0, 4, x, c.vocab, c.dim); CK(cudaDeviceSynchronize());
        Out o; o.res.resize(n * c.dim); o.logits.resize((size_t)n * c.vocab); CK(cudaMemcpy(o.res.data(), h, n * c.dim * 4, cudaMemcpyDeviceToHost)); CK(cudaMemcpy(o.logits.data(), y, o.logits.size() * 4, cudaMemcpyDeviceToHost));
        cudaFree(rr); cudaFree(h); cudaFree(x); cudaFree(y); cudaFree(a); return o;
    }
};
static int fails = 0;
static double rel(const float* a, const float* b, size_t n) { double d = 0, s = 0; for (size_t i = 0; i < n; i++) { double e = (double)a[i] - b[i]; d += e * e; s += (double)b[i] * b[i]; } return sqrt(d / s); }
static void expect(bool ok, const char* what) { if (!ok) { fails++; printf("  FAIL %s\n", what); } }

static void check_case(const char* name, Cfg c, std::vector<std::pair<int,int>> streams /* history length, rows */, bool singles = true) {
    Lab lab(c, streams.size(), true); std::vector<RefRow> rows; for (size_t s = 0; s < streams.size(); s++) for (int i = 0; i < streams[s].second; i++) rows.push_back({(int)s, streams[s].first + i, streams[s].first, (int)(s * 7 + i) % 5 == 4 ? -1 : (int)(s * 7 + i), (int)s % 4 - 1 < 0 ? -1 : (int)s % 4 - 1});
    auto refill = [&] { for (size_t s = 0; s < streams.size(); s++) lab.fill(s, streams[s].first); CK(cudaDeviceSynchronize()); };
    lab.set(rows); refill(); auto want = lab.ref(); int n = rows.size(); double worst_l = 0, worst_r = 0; int top = 0; 
    Lab::Out first; bool have = false; std::string bits;
    for (auto& v : variants()) if (n <= v.rows) {
        refill(); auto got = lab.run(v.k);
        for (int r = 0; r < n; r++) { double l = rel(&got.logits[(size_t)r * c.vocab], &want.logits[(size_t)r * c.vocab], c.vocab), e = rel(&got.res[r * c.dim], &want.res[r * c.dim], c.dim); if (!(l <= worst_l)) worst_l = l; if (!(e <= worst_r)) worst_r = e;
            int am = 0; for (int j = 1; j < c.vocab; j++) if (got.logits[(size_t)r * c.vocab + j] > got.logits[(size_t)r * c.vocab + am]) am = j; expect(am == got.next[r], "top-1 equals argmax of logits"); }
        if (!have) { first = got; have = true; } else { expect(!memcmp(first.logits.data(), got.logits.data(), got.logits.size() * 4) && !memcmp(first.res.data(), got.res.data(), got.res.size() * 4), "bits equal across kernels"); }
    }
    for (int r = 0; r < n; r++) { int am = 0; for (int j = 1; j < c.vocab; j++) if (want.logits[(size_t)r * c.vocab + j] > want.logits[(size_t)r * c.vocab + am]) am = j; top += am == first.next[r]; }
    expect(worst_l < 2e-2 && worst_r < 2e-2, "error against reference");
    refill(); auto sp = lab.run(lab.pick(n), true); expect(!memcmp(sp.logits.data(), first.logits.data(), sp.logits.size() * 4), "phases launched one by one");
    for (int rep = 0; rep < 2; rep++) { refill(); auto again = lab.run(lab.pick(n)); expect(!memcmp(again.logits.data(), first.logits.data(), again.logits.size() * 4), "repeat"); }
    int bad = 0; if (singles) { refill(); for (int r = 0; r < n; r++) { lab.set({rows[r]}); auto one = lab.run(decoder_pass_1); if (memcmp(one.logits.data(), &first.logits[(size_t)r * c.vocab], (size_t)c.vocab * 4) || one.next[0] != first.next[r]) bad++; } expect(!bad, "row alone equals row among others"); }
    printf("%-28s rows %2d  err logits %.2e residual %.2e  top1 %d/%d  single-row mismatches %d\n", name, n, worst_l, worst_r, top, n, bad); fflush(stdout);
    for (auto q : lab.caches) cudaFree(q); for (auto& l : lab.layers) { cudaFree((void*)l.wqkv); cudaFree((void*)l.wo); cudaFree((void*)l.w13); cudaFree((void*)l.w2); } cudaFree((void*)lab.p.head); cudaFree(lab.p.partial); cudaFree(lab.p.logits);
}
static const Cfg TINY{256, 4, 2, 512, 2816, 4, 256, 512, 2, 2};
static const Cfg ODD{272, 8, 1, 424, 1001, 3, 300, 512, 3, 1};
static const Cfg ODD2{1040, 4, 4, 1304, 3003, 2, 700, 1024, 1, 4};
static Cfg full(int layers) { return {3072, 32, 8, 9216, 131072, layers, 8192, 8448, 2, 2}; }

static float time_pass(Lab& lab, Kern k, int reps = 20) {
    cudaStream_t s; CK(cudaStreamCreate(&s)); cudaEvent_t a, b; cudaEventCreate(&a); cudaEventCreate(&b); std::vector<float> ts;
    for (int i = 0; i < 3; i++) lab.launch(k, lab.p, s);
    for (int i = 0; i < reps; i++) { cudaEventRecord(a, s); lab.launch(k, lab.p, s); cudaEventRecord(b, s); CK(cudaEventSynchronize(b)); float t; cudaEventElapsedTime(&t, a, b); ts.push_back(t); }
    std::sort(ts.begin(), ts.end()); cudaStreamDestroy(s); return ts[reps / 2];
}
int main(int argc, char** argv) {
    std::string mode = argc > 1 ? argv[1] : "check";
    if (mode == "small") { check_case("tiny", TINY, {{100, 1}, {300, 3}}, false); }
    if (mode == "check") {
        check_case("tiny 1", TINY, {{0, 1}});
        check_case("tiny mixed", TINY, {{0, 3}, {255, 3}, {509, 9}, {600, 1}, {2000, 2}, {17, 1}});
        check_case("tiny 39 prefill", TINY, {{0, 39}});
        check_case("tiny 64", TINY, {{0, 20}, {240, 30}, {1000, 14}});
        check_case("odd mixed", ODD, {{0, 5}, {290, 3}, {511, 2}, {5000, 4}});
        check_case("odd2 mixed", ODD2, {{0, 5}, {250, 9}, {1020, 7}, {777, 1}, {3000, 11}});
        check_case("full 2 layers", full(2), {{300, 1}, {2300, 1}});
        check_case("full 2 layers 33", full(2), {{300, 5}, {2300, 8}, {9000, 4}, {0, 13}, {40, 3}});
    }
    if (mode == "time" || mode == "trace") {
        int ns = getenv("STREAMS") ? atoi(getenv("STREAMS")) : 64; Lab lab(full(26), ns, false); double bytes = 6.8577e9; for (int s = 0; s < ns; s++) lab.fill(s, 2300); CK(cudaDeviceSynchronize());
        auto go = [&](const char* name, std::vector<RefRow> rows, int var) { lab.set(rows); auto v = variants()[var]; float t = time_pass(lab, v.k); printf("%-36s kernel %2d rows: %.4f ms  %.0f GB/s of weights\n", name, v.rows, t, bytes / t / 1e6); fflush(stdout); };
        auto distinct = [&](int n, int pos) { std::vector<RefRow> r; for (int i = 0; i < n; i++) r.push_back({i % ns, pos, pos, i, i % 3}); return r; };
        auto same = [&](int n, int pos) { std::vector<RefRow> r; for (int i = 0; i < n; i++) r.push_back({0, pos + i, pos, i, 1}); return r; };
        if (mode == "time") {
            const char* only = argc > 2 ? argv[2] : "";
            go("1 row KV 300", same(1, 300), 0); go("1 row KV 2300", same(1, 2300), 0); go("1 row KV 8191", same(1, 8191), 0);
            if (!strcmp(only, "1")) return 0;
            go("8 rows 1 stream KV 300", same(8, 300), 0); go("8 rows 1 stream KV 2300", same(8, 2300), 0); go("8 streams KV 300", distinct(8, 300), 0); go("8 streams KV 2300", distinct(8, 2300), 0);
            go("16 rows 1 stream KV 300", same(16, 300), 1); go("16 rows 1 stream KV 2300", same(16, 2300), 1); go("16 streams KV 300", distinct(16, 300), 1); go("16 streams KV 2300", distinct(16, 2300), 1);
            go("32 rows 1 stream KV 300", same(32, 300), 2); go("32 rows 1 stream KV 2300", same(32, 2300), 2); go("32 streams KV 300", distinct(32, 300), 2); go("32 streams KV 2300", distinct(32, 2300), 2);
            go("prefill 39", same(39, 0), 3); go("prefill 39", same(39, 0), 4);
            go("64 rows 1 stream KV 300", same(64, 300), 4); go("64 rows 1 stream KV 2300", same(64, 2300), 4); go("64 streams KV 300", distinct(64, 300), 4); go("64 streams KV 2300", distinct(64, 2300), 4);
        }
#ifdef LAB_TRACE
        if (mode == "trace") { int n = argc > 2 ? atoi(argv[2]) : 1, pos = argc > 3 ? atoi(argv[3]) : 2300, var = argc > 4 ? atoi(argv[4]) : 0; lab.set(same(n, pos)); time_pass(lab, variants()[var].k, 5); CK(cudaDeviceSynchronize());
            std::vector<long long> tr(256 * 256 * 4); CK(cudaMemcpyFromSymbol(tr.data(), lab_trace, tr.size() * 8));
            const char* nm[] = {"qkv", "attn", "wo", "w13", "w2"}; double f = 1.0 / 1980.0; double sum[5][4] = {}; 
            for (int l = 1; l < 26; l++) for (int k = 0; k < 5; k++) { int ph = 1 + 5 * l + k; double tot = 0, m1 = 0, m2 = 0, m2x = 0; for (int b = 0; b < lab.sms; b++) { auto* q = &tr[(b * 256 + ph) * 4]; long long nx = tr[(b * 256 + ph + 1) * 4]; tot += nx - q[0]; m1 += q[1] - q[0]; m2 += q[2] - q[0]; m2x = std::max(m2x, (double)(q[2] - q[0])); }
                sum[k][0] += tot / lab.sms; sum[k][1] += m1 / lab.sms; sum[k][2] += m2 / lab.sms; sum[k][3] += m2x; }
            { double e = 0, hd = 0, hm = 0, al = 0; for (int b = 0; b < lab.sms; b++) { auto* q = &tr[(b * 256) * 4]; e += q[1 * 4] - q[0]; hm += q[131 * 4 + 1] - q[131 * 4]; hd += q[131 * 4 + 2] - q[131 * 4]; al += q[131 * 4 + 2] - q[0]; } printf("embed %.2f us, head main loop %.2f, head %.2f, all %.2f\n", e / lab.sms * f, hm / lab.sms * f, hd / lab.sms * f, al / lab.sms * f); }
            printf("rows %d pos %d: us per layer (mean over blocks): phase total (start to start) | last main loop end | work end | slowest block's work end\n", n, pos); for (int k = 0; k < 5; k++) printf("  %-5s %7.2f %7.2f %7.2f %7.2f\n", nm[k], sum[k][0] / 25 * f, sum[k][1] / 25 * f, sum[k][2] / 25 * f, sum[k][3] / 25 * f);
        }
#endif
    }
    printf(fails ? "FAILURES %d\n" : "ok\n", fails); return fails != 0;
}
