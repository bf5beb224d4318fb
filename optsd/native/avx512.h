// Registers of 512 bits: AVX-512 with VNNI and BF16.

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int64_t LANES = 16;             // floats in a register
constexpr int64_t ROWS = 6, VECTORS = 4;  // of one product's sums: with 4 of B and 1 of A they fill the 32 registers

using Floats = __m512;
using Ints = __m512i;
using Words = __m512i;
using Lanes = __mmask16;  // which places of a register are meant
using Flags = __mmask16;

Lanes first(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

Floats load(const float* x) { return _mm512_loadu_ps(x); }
Ints load(const int32_t* x) { return _mm512_loadu_si512(x); }
Words load(const uint32_t* x) { return _mm512_loadu_si512(x); }
Floats load(Lanes lanes, const float* x) { return _mm512_maskz_loadu_ps(lanes, x); }
Ints load(Lanes lanes, const int32_t* x) { return _mm512_maskz_loadu_epi32(lanes, x); }
void store(float* x, Floats value) { _mm512_storeu_ps(x, value); }
void store(int32_t* x, Ints value) { _mm512_storeu_si512(x, value); }

Floats everywhere(float x) { return _mm512_set1_ps(x); }
Ints everywhere(int32_t x) { return _mm512_set1_epi32(x); }
Words everywhere(uint32_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }

Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
Floats lower(Floats a, Floats b) { return _mm512_min_ps(a, b); }   // b where one is NaN
Floats higher(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one is NaN
Floats absolute(Floats x) { return _mm512_abs_ps(x); }
Floats square_root(Floats x) { return _mm512_sqrt_ps(x); }
Floats rounded(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
Floats times_power_of_two(Floats x, Floats whole) { return _mm512_scalef_ps(x, whole); }
Floats where_negative(Floats x, Floats then, Floats otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), then);
}
float lowest_of(Floats x) { return _mm512_reduce_min_ps(x); }
float highest_of(Floats x) { return _mm512_reduce_max_ps(x); }
float total_of(Floats x) { return _mm512_reduce_add_ps(x); }
Flags is_nan(Floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
Flags either(Flags a, Flags b) { return a | b; }
bool any(Flags flags) { return flags; }

Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
Ints bits_of(Floats x) { return _mm512_castps_si512(x); }
Ints difference(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
Ints product(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }

struct Float32 {
    using Value = float;
    using Factor = Float32;
    using Sum = float;
    using Sums = Floats;
    static constexpr int64_t PER_WORD = 1;
    static float factor(float x) { return x; }
    static Floats load(const float* x) { return _mm512_loadu_ps(x); }
    static Floats load(Lanes lanes, const float* x) { return _mm512_maskz_loadu_ps(lanes, x); }
    static void store(float* x, Lanes lanes, Floats value) { _mm512_mask_storeu_ps(x, lanes, value); }
    static Floats add_product(Floats sum, Words a, Words b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
};

struct BFloat16 {
    using Value = uint16_t;
    using Factor = BFloat16;
    using Sum = float;
    using Sums = Floats;
    static constexpr int64_t PER_WORD = 2;
    static uint16_t factor(uint16_t x) { return x; }
    static Floats widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
    static Floats load(const uint16_t* x) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }
    static Floats load(Lanes lanes, const uint16_t* x) { return widen(_mm256_maskz_loadu_epi16(lanes, x)); }
    static void store(uint16_t* x, Lanes lanes, Floats value) {
        _mm256_mask_storeu_epi16(x, lanes, (__m256i)_mm512_cvtneps_pbh(value));
    }
    static Floats add_product(Floats sum, Words a, Words b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};

struct Bytes {  // the low bytes of integers
    using Value = uint8_t;
    static void store(uint8_t* x, Lanes lanes, Ints value) { _mm512_mask_cvtepi32_storeu_epi8(x, lanes, value); }
};

struct Integers : Bytes {  // unsigned bytes times signed ones
    using Signed = int8_t;
    using Sum = int32_t;
    using Sums = Ints;
    static constexpr int64_t PER_WORD = 4;
    static Ints add_product(Ints sum, Words a, Words b) { return _mm512_dpbusd_epi32(sum, a, b); }

    // Weights that lie as `optsd.native.pack` leaves them, as words of this product: they are.
    static const uint32_t* words_of(const int8_t* packed, int64_t, int64_t, uint32_t*) {
        return reinterpret_cast<const uint32_t*>(packed);
    }

    using Weights = __m512i;  // bytes: those of one input for a tile's outputs

    // The high or the low halves of `count` bytes, with their sign, times as many integers; 0 beyond.
    static Weights unpack(const int8_t* packed, bool high, const int8_t* multipliers, int64_t count) {
        const __mmask64 there = count < 64 ? (__mmask64(1) << count) - 1 : ~__mmask64(0);
        __m512i value = _mm512_maskz_loadu_epi8(there, packed);
        if (high) value = _mm512_srli_epi16(value, 4);
        const __m512i sign = _mm512_set1_epi8(8);
        value = _mm512_and_si512(value, _mm512_set1_epi8(15));
        value = _mm512_sub_epi8(_mm512_xor_si512(value, sign), sign);
        const __m512i by = _mm512_maskz_loadu_epi8(there, multipliers);
        // There is no product of bytes: the low bytes of products of 16 bits, even and odd ones in turn.
        const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(value, 8), _mm512_srli_epi16(by, 8));
        return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_mullo_epi16(value, by), _mm512_slli_epi16(odd, 8));
    }

    // Words of four inputs' weights, of which the first `columns` are wanted.
    static void lace(const Weights (&inputs)[4], int64_t columns, uint32_t* words) {
        // Before rows are laced into words, lane by lane of 128 bits: so that words come out in the order of outputs.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        __m512i rows[4];
        for (int64_t k = 0; k < 4; k++) rows[k] = _mm512_permutexvar_epi32(order, inputs[k]);
        const __m512i low[2] = {_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpacklo_epi8(rows[2], rows[3])};
        const __m512i high[2] = {_mm512_unpackhi_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[2], rows[3])};
        const __m512i laced[4] = {_mm512_unpacklo_epi16(low[0], low[1]), _mm512_unpackhi_epi16(low[0], low[1]),
                                  _mm512_unpacklo_epi16(high[0], high[1]), _mm512_unpackhi_epi16(high[0], high[1])};
        for (int64_t vector = 0; vector < columns / LANES; vector++)
            _mm512_storeu_si512(words + vector * LANES, laced[vector]);
    }
};

}  // namespace
