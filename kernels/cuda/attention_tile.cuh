/* attention_tile.cuh - one warp's part of a tile of attention: 16 or 32 rows of queries against 64
 * keys, on mma.m16n8k16. Inside kernels/cuda/ only; attention_prefill.cu says what it is for. */
#ifndef LORRY_KERNELS_CUDA_ATTENTION_TILE_CUH
#define LORRY_KERNELS_CUDA_ATTENTION_TILE_CUH

#include <math.h>
#include <stdint.h>

#include "kernels/cuda/attention_job.cuh"

namespace {

enum {
    KEYS = 64, /* of a key tile */
};

/* ---- tiles in shared memory ---------------------------------------------------------------
 *
 * Tiles of rows of head_dim elements. Eight rows must lie in different banks at the same piece, for
 * ldmatrix: rows of 128 or 256 bytes have piece i at i ^ (row % 8), other rows have a length of an
 * odd number of pieces. */

template <int D> struct tile {
    static constexpr uint32_t PIECES = D / PIECE;
    static constexpr bool SWIZZLED = PIECES % 8 == 0;
    static constexpr uint32_t ROW_BYTES = 16 * (SWIZZLED ? PIECES : PIECES + 1);
    static constexpr uint32_t KEY_BYTES = KEYS * ROW_BYTES; /* of a tile of K, or of V */

    static __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t piece) {
        return row * ROW_BYTES + 16 * (SWIZZLED ? piece ^ (row % 8) : piece);
    }
};
static_assert(tile<32>::PIECES % 2 == 0 && tile<80>::PIECES % 2 == 0 && tile<96>::PIECES % 2 == 0,
              "one more is odd");

/* What a lane adds to the address of a matrix for ldmatrix. The four 8 × 8 matrices are the
 * quarters of 16 rows × 2 pieces: rows first (0 1 over rows, then the next piece) or pieces first.
 */
template <int D> struct corner {
    uint32_t row, piece; /* bytes */

    __device__ __forceinline__ corner(uint32_t lane, bool rows_first) {
        uint32_t low = lane / 8 % 2, high = lane / 16, in = lane % 8;
        row = ((rows_first ? low : high) * 8 + in) * tile<D>::ROW_BYTES;
        piece = 16 * ((rows_first ? high : low) ^ (tile<D>::SWIZZLED ? in : 0));
    }
    /* Of the 16 rows from `begin` on, a multiple of 8, the pieces 2 × pair and 2 × pair + 1. */
    __device__ __forceinline__ uint32_t at(uint32_t begin, uint32_t pair) const {
        return row + begin * tile<D>::ROW_BYTES +
               (tile<D>::SWIZZLED ? piece ^ (32 * pair) : piece + 32 * pair);
    }
};

/* ---- a warp's arithmetic ------------------------------------------------------------------
 *
 * MT: blocks of 16 rows that a warp has. A lane has of each block the rows lane / 4 and lane / 4 +
 * 8, called 0 and 1 below, and of each 8 columns 2 × (lane % 4) and the next. */

template <int D, int MT> struct rows {
    float out[MT][D / 8][4];
    float top[MT][2]; /* what exponents are taken from: the maximum so far, or a little less */
    float sum[MT][2]; /* of this lane's columns */
};

/* score = q Kᵀ */
template <typename T, int D, int MT>
__device__ __forceinline__ void scores(float score[MT][KEYS / 8][4], uint32_t q, uint32_t k,
                                       const corner<D> &q_corner, const corner<D> &k_corner) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                score[m][n][i] = 0;
            }
        }
    }
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            ldmatrix_x4(a[m], q + q_corner.at(16 * m, step));
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4(b, k + k_corner.at(16 * n, step));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_16816<T>(score[m][2 * n], a[m], b);
                mma_16816<T>(score[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

/* Scores → exp2(scale · (score − top)); adds them to the sums; moves tops and rescales where the
 * maximum has grown by more than LAG. */
template <int D, int MT>
__device__ __forceinline__ void probabilities(float score[MT][KEYS / 8][4], struct rows<D, MT> *r,
                                              float scale) {
    float factor[MT][2];
    bool moved = false;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = fmaxf(score[m][0][2 * half], score[m][0][2 * half + 1]);
#pragma unroll
            for (int n = 1; n < KEYS / 8; n++) {
                most = fmaxf(most, fmaxf(score[m][n][2 * half], score[m][n][2 * half + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            float top = r->top[m][half];
            bool move = (most - top) * scale > LAG; /* −∞ − −∞ is a NaN: no */
            factor[m][half] = move ? exp2_fast((top - most) * scale) : 1.0f;
            r->top[m][half] = move ? most : top;
            moved |= move;
        }
    }
    if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    r->out[m][n][i] *= factor[m][i / 2];
                }
            }
            r->sum[m][0] *= factor[m][0];
            r->sum[m][1] *= factor[m][1];
        }
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            /* a row that has seen no key yet: all its scores are −∞, and 0 is as good as any top */
            float top = r->top[m][half], from = top == -INFINITY ? 0.0f : top * scale, sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    score[m][n][i] = exp2_fast(__fmaf_rn(score[m][n][i], scale, -from));
                    sum += score[m][n][i];
                }
            }
            r->sum[m][half] += sum;
        }
    }
}

/* out += probabilities · V */
template <typename T, int D, int MT>
__device__ __forceinline__ void weigh(float out[MT][D / 8][4], const float score[MT][KEYS / 8][4],
                                      uint32_t v, const corner<D> &v_corner) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &score[m][2 * step + i / 2][2 * (i % 2)];
                a[m][i] = pair_bits<T>(pair[0], pair[1]);
            }
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, v + v_corner.at(16 * step, n));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_16816<T>(out[m][2 * n], a[m], b);
                mma_16816<T>(out[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

} // namespace

#endif
