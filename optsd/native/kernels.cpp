// The CPU's own kernels: quantized activations and layers, with sums and GEGLU in their end, group normalization with
// SiLU, layer normalization of a sum, GEGLU and attention.
//
// Plain C functions over addresses, so that they compile in a second or two, without torch's headers. __init__.py
// checks shapes, types and the processor, compiles this file and calls it. Each algorithm is here once; what a register
// holds, and the instructions, are in a header for each instruction set. There a type of numbers says how they are
// loaded and stored as floats, and as which Factor they are multiplied: a product takes what 32 bits hold at once,
// PER_WORD factors, and adds it to a Sum; a register holds LANES of both.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

namespace {

const float INFINITE = std::numeric_limits<float>::infinity();

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> allocate(int64_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, bytes)));
}

// Threads for so many numbers: below 16,384 starting them takes longer than the work.
int threads_for(int64_t numbers, int threads) { return numbers < 16384 ? 1 : threads; }

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Without it compilers spill the sums of a loop that they unroll too late.
#define UNROLLED _Pragma("GCC unroll 8")

// Where sums of rows × columns begin and what becomes of them: in memory, from 0 on, or added to what lies there.
template <typename Type>
struct InMemory {
    typename Type::Sum* sums;
    int64_t columns;
    bool add;

    typename Type::Sums begin(int row, int64_t at) const {
        return add ? load(sums + row * columns + at) : typename Type::Sums{};
    }
    void end(int row, int64_t at, typename Type::Sums value) const { store(sums + row * columns + at, value); }
};

// ROWS × LANES·VECTORS sums of A · B (words × columns), which stay in registers: from `ends`' begin to its end. A's rows
// come in `parts` of `words`: row i of part j begins at a[j · a_step + i], plus `from`.
template <typename Type, int ROWS, int VECTORS, typename Ends>
void multiply(const uint32_t* const* a, int64_t a_step, int64_t parts, int64_t from, const uint32_t* b, int64_t b_row,
              const Ends& ends, int64_t words, const char* ahead) {
    typename Type::Sums sums[ROWS][VECTORS];
    UNROLLED for (int row = 0; row < ROWS; row++)
        UNROLLED for (int vector = 0; vector < VECTORS; vector++) sums[row][vector] = ends.begin(row, vector * LANES);
    for (int64_t part = 0; part < parts; part++, a += a_step) {
        const uint32_t* lines[ROWS];
        UNROLLED for (int row = 0; row < ROWS; row++) lines[row] = a[row] + from;
        for (int64_t word = 0; word < words; word++, b += b_row, ahead += 64) {
            __builtin_prefetch(ahead, 0, 2);
            Words right[VECTORS];
            UNROLLED for (int vector = 0; vector < VECTORS; vector++) right[vector] = load(b + vector * LANES);
            UNROLLED for (int row = 0; row < ROWS; row++) {
                const Words left = everywhere(lines[row][word]);
                UNROLLED for (int vector = 0; vector < VECTORS; vector++)
                    sums[row][vector] = Type::add_product(sums[row][vector], left, right[vector]);
            }
        }
    }
    UNROLLED for (int row = 0; row < ROWS; row++)
        UNROLLED for (int vector = 0; vector < VECTORS; vector++) ends.end(row, vector * LANES, sums[row][vector]);
}

template <typename Type, int ROWS, typename Ends, int MOST = VECTORS>
auto multiply_of(int64_t vectors) -> decltype(&multiply<Type, ROWS, 1, Ends>) {
    if constexpr (MOST > 1)
        if (vectors < MOST) return multiply_of<Type, ROWS, Ends, MOST - 1>(vectors);
    return multiply<Type, ROWS, MOST, Ends>;
}

// ---------------------------------------------------------------------------------------------- quantized activations

// The smallest and the largest of numbers and 0.
struct Range {
    float lowest = 0, highest = 0;
    bool is_a_number = true;
};

template <typename Type>
Range range_of(const typename Type::Value* x, int64_t count) {
    Floats low[4], high[4];
    Flags nan{};
    for (int part = 0; part < 4; part++) low[part] = high[part] = everywhere(0.0f);
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int part = 0; part < 4; part++) {
            const Floats value = Type::load(x + i + part * LANES);
            low[part] = lower(low[part], value);
            high[part] = higher(high[part], value);
            nan = either(nan, is_nan(value));
        }
    for (; i < count; i += LANES) {
        const Floats value = Type::load(first(std::min(count - i, LANES)), x + i);
        low[0] = lower(low[0], value);
        high[0] = higher(high[0], value);
        nan = either(nan, is_nan(value));
    }
    const Floats least = lower(lower(low[0], low[1]), lower(low[2], low[3]));
    const Floats most = higher(higher(high[0], high[1]), higher(high[2], high[3]));
    return {lowest_of(least), highest_of(most), !any(nan)};
}

// To the low bytes of x · factor + shift, rounded after the product and after the sum, as torch rounds.
template <typename Type, typename Result>
void round_to_bytes(const typename Type::Value* x, int64_t count, float factor, float shift,
                    typename Result::Value* out) {
    const Floats by = everywhere(factor), plus = everywhere(shift);
    for (int64_t i = 0; i < count; i += LANES) {
        const Lanes lanes = first(std::min(count - i, LANES));
        Result::store(out + i, lanes, bits_of(Type::load(lanes, x + i) * by + plus));
    }
}

// One picture, or one row, as optsd.quantization.schemes.quantize_activation does it: integers with their scale and zero
// point, `lowest` of which stands for the smallest. False where x has no finite range, which is then left in `range`.
template <typename Type, typename Result>
bool quantize(const typename Type::Value* x, int64_t count, int lowest, int threads, typename Result::Value* out,
              float& scale, int32_t& zero_point, float* range) {
    const int64_t share = round_up((count + threads - 1) / threads, 64);  // of one thread
    Range whole;
    if (threads == 1) {
        whole = range_of<Type>(x, count);
    } else {
        float low = 0, high = 0;
        bool is_a_number = true;
#pragma omp parallel for num_threads(threads) reduction(min : low) reduction(max : high) reduction(&& : is_a_number)
        for (int64_t begin = 0; begin < count; begin += share) {
            const Range part = range_of<Type>(x + begin, std::min(share, count - begin));
            low = std::min(low, part.lowest), high = std::max(high, part.highest);
            is_a_number = is_a_number && part.is_a_number;
        }
        whole = {low, high, is_a_number};
    }
    const double step = (double(whole.highest) - whole.lowest) / 254;
    if (!whole.is_a_number || !(step < INFINITE)) {
#pragma omp critical
        range[0] = whole.is_a_number ? whole.lowest : NAN, range[1] = whole.is_a_number ? whole.highest : NAN;
        return false;
    }
    const double by = std::max(step, 1e-30), zero = std::ceil(-whole.lowest / by) + lowest;
    const float factor = float(1 / by), shift = float(1.5 * (1 << 23) + zero);
    scale = float(by), zero_point = int32_t(zero);
    if (threads == 1) {
        round_to_bytes<Type, Result>(x, count, factor, shift, out);
    } else {
#pragma omp parallel for num_threads(threads)
        for (int64_t begin = 0; begin < count; begin += share)
            round_to_bytes<Type, Result>(x + begin, std::min(share, count - begin), factor, shift, out + begin);
    }
    return true;
}

// `pictures` of `count` numbers each, every one by its own range. Where one has none, false, and that is in `range`.
template <typename Type, typename Result>
bool quantize_each(const void* x, int64_t pictures, int64_t count, int lowest, int threads,
                   typename Result::Value* out, float* scale, int32_t* zero_point, float* range) {
    const auto* numbers = static_cast<const typename Type::Value*>(x);
    threads = threads_for(pictures * count, threads);
    // Threads share out the pictures, or where that leaves some idle, each picture.
    const bool by_picture = pictures % threads == 0 || pictures >= 8 * threads;
    bool is_finite = true;
#pragma omp parallel for num_threads(by_picture ? threads : 1) reduction(&& : is_finite)
    for (int64_t i = 0; i < pictures; i++) {
        const bool is_right = quantize<Type, Result>(numbers + i * count, count, lowest, by_picture ? 1 : threads,
                                                     out + i * count, scale[i], zero_point[i], range);
        is_finite = is_finite && is_right;
    }
    return is_finite;
}

// ------------------------------------------------------------------------------------------------------ exponentials

// 2^x for x <= 0; below 2^-126 it may be 0. To 2e-7 of it, or where it is to be a bfloat16, which rounds by 2e-3, to 1e-4.
template <typename Type = Float32>
Floats power_of_two(Floats x) {
    x = higher(everywhere(-127.0f), x);  // in this order: a NaN stays
    const Floats whole = rounded(x), part = x - whole;  // |part| <= 0.5
    const auto series = [part](Floats sum, auto... coefficients) {
        ((sum = multiply_add(sum, part, everywhere(coefficients))), ...);
        return sum;
    };
    if constexpr (std::is_same_v<Type, Float32>)  // Taylor's
        return times_power_of_two(
            series(everywhere(1.3333558e-3f), 9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f), whole);
    // the cubic whose largest relative error is the least, of those with 2^0 = 1
    return times_power_of_two(series(everywhere(0.05500893f), 0.24221097f, 0.69328293f, 1.0f), whole);
}

// x · Φ(x). Φ's tail is Abramowitz & Stegun's 7.1.26, off by 8e-8 at most.
Floats gelu(Floats x) {
    const Floats z = absolute(x) * everywhere(0.70710678f), one = everywhere(1.0f);
    const Floats t = one / multiply_add(z, everywhere(0.3275911f), one);
    Floats sum = everywhere(1.061405429f);
    for (const float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
        sum = multiply_add(sum, t, everywhere(coefficient));
    const Floats tail = sum * power_of_two(z * z * everywhere(-1.44269504f)) * everywhere(0.5f);
    return x * where_negative(x, tail, one - tail);
}

// x / (1 + e^-x)
Floats silu(Floats x) {
    const Floats one = everywhere(1.0f), power = power_of_two(absolute(x) * everywhere(-1.44269504f));
    return x * (where_negative(x, power, one) / (one + power));
}

// -------------------------------------------------------------------------------------------------- quantized layers

constexpr int64_t TILE = VECTORS * LANES;  // outputs of one product
constexpr int64_t PANEL = 64;              // outputs of one item of work
constexpr int64_t SHARE = 64 * ROWS;       // pixels of one item of work: their sums stay in the second-level cache,
constexpr int64_t BLOCK = 512 * Integers::PER_WORD;  // and so do PANEL × BLOCK weights

// What both kinds of weights have: block(output, columns, input, count, words) gives words of `count` inputs
// for a tile's outputs, side by side: where they lie, or in `words`, which has room for TILE × BLOCK weights.

struct Int8Weights {
    const int8_t* packed;
    int64_t inputs;

    const uint32_t* block(int64_t output, int64_t columns, int64_t input, int64_t count, uint32_t* words) const {
        return Integers::words_of(packed + output * inputs + input * columns, count, columns, words);
    }
    // Where the block begins that follows such a one.
    const char* after(int64_t output, int64_t columns, int64_t input, int64_t count) const {
        return reinterpret_cast<const char*>(packed + output * inputs + (input + count) * columns);
    }
};

// inputs × outputs, two to a byte: the low half is input i, the high half input `half` + i.
struct Int4Weights {
    const int8_t* packed;
    const int8_t* multipliers;  // groups × outputs
    int64_t outputs, half, group;

    const uint32_t* block(int64_t output, int64_t columns, int64_t input, int64_t count, uint32_t* words) const {
        const int64_t real = std::min(columns, outputs - output);
        for (int64_t i = 0; i < count; i += 4) {
            Integers::Weights rows[4] = {};
            for (int64_t k = 0; k < 4 && input + i + k < 2 * half; k++) {
                const int64_t row = input + i + k;
                const bool is_high = row >= half;
                rows[k] = Integers::unpack(packed + (row - is_high * half) * outputs + output, is_high,
                                           multipliers + row / group * outputs + output, real);
            }
            Integers::lace(rows, columns, words + i / Integers::PER_WORD * columns);
        }
        return words;
    }
    const char* after(int64_t, int64_t, int64_t, int64_t) const { return nullptr; }  // it is read as it is unpacked
};

// Of a Linear layer each row is a picture of one pixel: both are quantized by their own range.
struct Pictures {
    const Integers::Value* numbers;
    int64_t count, height, width, channels;
};

struct Window {
    int64_t rows, columns, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width;

    // Whether a picture is larger by its border.
    bool is_padded(int64_t height, int64_t width) const {
        return top || left || (out_height - 1) * stride_y + (rows - 1) * dilation_y >= height ||
               (out_width - 1) * stride_x + (columns - 1) * dilation_x >= width;
    }
};

// For each place in the window, and for each pixel of the result, its line of channels; past the border, the picture's
// in `borders`. Up to `step` pixels there is something to read.
Buffer<const uint32_t*> find_lines(const Pictures& pictures, const Window& window, const Integers::Value* borders,
                                   int64_t step, int threads) {
    const int64_t pixels = pictures.count * window.out_height * window.out_width;
    auto lines = allocate<const uint32_t*>(window.rows * window.columns * step);
    const auto words = [](const Integers::Value* line) { return reinterpret_cast<const uint32_t*>(line); };
#pragma omp parallel for num_threads(threads_for(window.rows * window.columns * pixels, threads))
    for (int64_t place = 0; place < window.rows * window.columns; place++) {
        const uint32_t** line = lines.get() + place * step;
        std::fill(line + pixels, line + step, words(pictures.numbers));
        for (int64_t i = 0; i < pictures.count * window.out_height; i++) {
            const int64_t picture = i / window.out_height;
            const int64_t y = i % window.out_height * window.stride_y - window.top +
                              place / window.columns * window.dilation_y;
            const bool is_inside = y >= 0 && y < pictures.height;
            const Integers::Value* row =
                pictures.numbers + (picture * pictures.height + y) * pictures.width * pictures.channels;
            const Integers::Value* border = borders + picture * pictures.channels;
            int64_t x = place % window.columns * window.dilation_x - window.left;
            for (int64_t j = 0; j < window.out_width; j++, x += window.stride_x)
                *line++ = words(is_inside && x >= 0 && x < pictures.width ? row + x * pictures.channels : border);
        }
    }
    return lines;
}

// What is added to a layer's numbers, of their type: `by_picture` and `by_pixel` numbers lie between two pictures' and two
// pixels' first ones, none where all pixels get the same.
struct Added {
    const void* numbers;  // or null
    int64_t by_picture, by_pixel;
};

// What turns sums into numbers.
struct Scales {
    const float* scale;         // of each picture
    const int32_t* zero_point;  // of each picture
    const float* weight_scale;
    const int32_t* column_sums;
    const float* bias;  // or null
    Added added;

    // What is known of `vectors` registers of outputs, from the `output`th on, of those before the `end`th.
    struct Outputs {
        Ints extra[PANEL / LANES];
        Floats factor[PANEL / LANES], offset[PANEL / LANES];
        Lanes lanes[PANEL / LANES];

        Outputs(const Scales& of, int64_t output, int64_t end, int64_t vectors) {
            for (int64_t i = 0; i < vectors; i++) {
                const int64_t at = output + i * LANES;
                lanes[i] = first(std::clamp<int64_t>(end - at, 0, LANES));
                extra[i] = load(lanes[i], of.column_sums + at);
                factor[i] = load(lanes[i], of.weight_scale + at);
                offset[i] = of.bias ? load(lanes[i], of.bias + at) : everywhere(0.0f);
            }
        }
        Floats numbers(int64_t i, const int32_t* sums, Floats by, Ints zero) const {
            const Floats exact = to_floats(difference(load(sums + i * LANES), product(extra[i], zero)));
            return multiply_add(exact, factor[i] * by, offset[i]);
        }
    };

    // count × columns of sums, from the `pixel`th on, of pictures of `area` pixels, to as many rows of `out`, of whose
    // `width` numbers they are the `output`th and those that follow; times GELU of those of `gates`, or null, which
    // are `width` outputs later.
    template <typename Type>
    void finish(const int32_t* sums, const int32_t* gates, int64_t pixel, int64_t count, int64_t area, int64_t columns,
                int64_t output, int64_t width, typename Type::Value* out) const {
        const int64_t vectors = columns / LANES;
        const Outputs outputs(*this, output, width, vectors);
        const Outputs of_gates(*this, width + output, 2 * width, gates ? vectors : 0);
        out += pixel * width + output;
        for (const int64_t end = pixel + count; pixel < end;) {
            const int64_t picture = pixel / area;
            const Floats by = everywhere(scale[picture]);
            const Ints zero = everywhere(zero_point[picture]);
            const auto* plus = static_cast<const typename Type::Value*>(added.numbers);
            if (plus) plus += picture * added.by_picture + pixel % area * added.by_pixel + output;
            for (const int64_t last = std::min(end, (picture + 1) * area); pixel < last; pixel++) {
                for (int64_t i = 0; i < vectors; i++) {
                    Floats numbers = outputs.numbers(i, sums, by, zero);
                    if (gates) numbers = numbers * gelu(of_gates.numbers(i, gates, by, zero));
                    if (plus) numbers = numbers + Type::load(outputs.lanes[i], plus + i * LANES);
                    Type::store(out + i * LANES, outputs.lanes[i], numbers);
                }
                sums += columns, out += width;
                if (gates) gates += columns;
                if (plus) plus += added.by_pixel;
            }
        }
    }
};

// With `gated` the second half of the outputs are gates of the first, which is a multiple of PANEL.
template <typename Type, typename Weights>
void convolve(const Pictures& pictures, const Window& window, const Weights& weights, int64_t outputs, bool gated,
              const Scales& scales, int threads, typename Type::Value* out) {
    const int64_t channels = pictures.channels, places = window.rows * window.columns;
    const int64_t area = window.out_height * window.out_width, pixels = pictures.count * area;
    const int64_t halves = gated ? 2 : 1, width = outputs / halves;
    if (!pixels) return;
    const auto borders = allocate<Integers::Value>(pictures.count * channels);
    if (window.is_padded(pictures.height, pictures.width))
        for (int64_t i = 0; i < pictures.count; i++)
            std::fill_n(borders.get() + i * channels, channels, static_cast<Integers::Value>(scales.zero_point[i]));
    const int64_t step = round_up(pixels, 2);
    const auto lines = find_lines(pictures, window, borders.get(), step, threads);

    // A block of weights is that of several places, or of a part of the channels of one.
    const int64_t block_places = std::max<int64_t>(1, BLOCK / channels);
    const int64_t parts = (channels + BLOCK - 1) / BLOCK, part = round_up((channels + parts - 1) / parts, 4);

    // Enough items that no thread waits long for the last one.
    const int64_t panels = (width + PANEL - 1) / PANEL;
    const int64_t shares = std::max((pixels + SHARE - 1) / SHARE, (8 * threads + panels - 1) / panels);
    const int64_t share = round_up((pixels + shares - 1) / shares, ROWS);
    const int64_t products = pixels * outputs * places * channels;  // 64 of them take as long as one number elsewhere
#pragma omp parallel for num_threads(threads_for(products / 64, threads)) schedule(dynamic)
    for (int64_t item = 0; item < panels * shares; item++) {
        const int64_t output = item / shares * PANEL, begin = item % shares * share;
        const int64_t count = std::min(share, pixels - begin);
        if (count <= 0) continue;
        // kept from call to call: fresh memory would have to be zeroed by the system
        alignas(64) static thread_local int32_t kept_sums[2][SHARE * PANEL];
        alignas(64) static thread_local uint32_t words[PANEL * BLOCK / Integers::PER_WORD];
        const int64_t columns = std::min(PANEL, round_up(width - output, 16));  // as many as there are packed
        for (int64_t half = 0; half < halves; half++) {
            int32_t* sums = kept_sums[half];
            for (int64_t place = 0; place < places; place += block_places)
                for (int64_t channel = 0; channel < channels; channel += part) {
                    const int64_t here = std::min(block_places, places - place);
                    const int64_t deep = std::min(part, channels - channel);
                    const uint32_t* blocks[PANEL / TILE];
                    for (int64_t tile = 0; tile < columns; tile += TILE)
                        blocks[tile / TILE] = weights.block(half * width + output + tile, std::min(TILE, columns - tile),
                                                            place * channels + channel, here * deep,
                                                            words + tile * BLOCK / Integers::PER_WORD);
                    const char* after =
                        weights.after(half * width + output, columns, place * channels + channel, here * deep);
                    int64_t fetched = 0;
                    for (int64_t row = 0; row < count;) {
                        const bool is_whole = count - row >= ROWS;
                        for (int64_t tile = 0; tile < columns; tile += TILE) {
                            const int64_t wide = std::min(TILE, columns - tile);
                            const auto run = is_whole ? multiply_of<Integers, ROWS, InMemory<Integers>>(wide / LANES)
                                                      : multiply_of<Integers, 2, InMemory<Integers>>(wide / LANES);
                            run(lines.get() + place * step + begin + row, step, here, channel / Integers::PER_WORD,
                                blocks[tile / TILE], wide, {sums + row * columns + tile, columns, place + channel > 0},
                                deep / Integers::PER_WORD, after + fetched);
                        }
                        fetched = (fetched + here * deep / Integers::PER_WORD * 64) % (here * deep * columns);
                        row += is_whole ? ROWS : 2;
                    }
                }
        }
        scales.finish<Type>(kept_sums[0], gated ? kept_sums[1] : nullptr, begin, count, area, columns, output, width,
                            out);
    }
}

// ----------------------------------------------------------------------------------------------- group normalization

constexpr int64_t CHUNK = 256;  // pixels whose sums are added by themselves: in the same order whatever the batch

// Of each channel of `pixels` × `channels` numbers, less those `around` it: the sum, and after all sums that of squares.
template <typename Type>
void add_up(const typename Type::Value* x, int64_t pixels, int64_t channels, const float* around, int64_t width,
            float* sums) {
    std::fill_n(sums, 2 * width, 0.0f);
    const auto add = [&](int64_t pixel, auto rows) {
        for (int64_t i = 0; i < channels; i += LANES) {
            const Lanes lanes = first(std::min(channels - i, LANES));
            const Floats middle = load(around + i);
            Floats sum = load(sums + i), square = load(sums + width + i);
            for (int64_t row = 0; row < rows; row++) {
                const Floats apart = Type::load(lanes, x + (pixel + row) * channels + i) - middle;
                sum = sum + apart, square = multiply_add(apart, apart, square);
            }
            store(sums + i, sum), store(sums + width + i, square);
        }
    };
    int64_t pixel = 0;
    for (; pixel + 8 <= pixels; pixel += 8) add(pixel, std::integral_constant<int64_t, 8>());
    for (; pixel < pixels; pixel++) add(pixel, std::integral_constant<int64_t, 1>());
}

// From the sums of all chunks: what each channel is multiplied with, and what is then added, `width` numbers later.
template <typename Type>
void scale_groups(const float* sums, int64_t chunks, int64_t pixels, int64_t channels, int64_t size,
                  const float* around, int64_t width, const typename Type::Value* weight,
                  const typename Type::Value* bias, float eps, float* scales) {
    const auto means = allocate<double>(size), squares = allocate<double>(size);
    for (int64_t group = 0; group < channels; group += size) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < size; i++) {
            const float* of_channel = sums + group + i;
            means[i] = squares[i] = 0;
            for (int64_t chunk = 0; chunk < chunks; chunk++, of_channel += 2 * width)
                means[i] += of_channel[0], squares[i] += of_channel[width];
            squares[i] -= means[i] * means[i] / pixels;  // about the channel's own mean
            means[i] = means[i] / pixels + around[group + i];
            mean += means[i] / size;
        }
        for (int64_t i = 0; i < size; i++)
            square += squares[i] + pixels * (means[i] - mean) * (means[i] - mean);
        std::fill_n(scales + group, size, float(mean));
        std::fill_n(scales + width + group, size, float(square / (pixels * size)));
    }
    for (int64_t i = 0; i < channels; i += LANES) {
        const Lanes lanes = first(std::min(channels - i, LANES));
        const Floats spread = square_root(load(scales + width + i) + everywhere(eps));
        const Floats factor = Type::load(lanes, weight + i) / spread;
        store(scales + width + i, multiply_add(-load(scales + i), factor, Type::load(lanes, bias + i)));
        store(scales + i, factor);
    }
}

// The group normalization of batch × pixels × channels numbers, with SiLU or without.
template <typename Type>
void normalize_groups(const typename Type::Value* x, int64_t batch, int64_t pixels, int64_t channels, int64_t groups,
                      const typename Type::Value* weight, const typename Type::Value* bias, float eps, bool with_silu,
                      int threads, typename Type::Value* out) {
    threads = threads_for(batch * pixels * channels, threads);
    const int64_t width = round_up(channels, LANES), chunks = (pixels + CHUNK - 1) / CHUNK;
    const auto sums = allocate<float>(batch * chunks * 2 * width), around = allocate<float>(batch * width);
    const auto scales = allocate<float>(batch * 2 * width);
    // each pixel of a channel differs little from its first one, whatever the channel's mean is
    for (int64_t image = 0; image < batch; image++)
        for (int64_t i = 0; i < channels; i += LANES)
            store(around.get() + image * width + i,
                  Type::load(first(std::min(channels - i, LANES)), x + image * pixels * channels + i));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t item = 0; item < batch * chunks; item++) {
            const int64_t image = item / chunks, pixel = item % chunks * CHUNK;
            add_up<Type>(x + (image * pixels + pixel) * channels, std::min(CHUNK, pixels - pixel), channels,
                         around.get() + image * width, width, sums.get() + item * 2 * width);
        }
#pragma omp for
        for (int64_t image = 0; image < batch; image++)
            scale_groups<Type>(sums.get() + image * chunks * 2 * width, chunks, pixels, channels, channels / groups,
                               around.get() + image * width, width, weight, bias, eps, scales.get() + image * 2 * width);
#pragma omp for
        for (int64_t pixel = 0; pixel < batch * pixels; pixel++) {
            const float* factor = scales.get() + pixel / pixels * 2 * width;
            for (int64_t i = 0; i < channels; i += LANES) {
                const Lanes lanes = first(std::min(channels - i, LANES));
                const Floats value = Type::load(lanes, x + pixel * channels + i);
                const Floats normal = multiply_add(value, load(factor + i), load(factor + width + i));
                Type::store(out + pixel * channels + i, lanes, with_silu ? silu(normal) : normal);
            }
        }
    }
}

// The layer normalization of rows of `width` numbers: of x + plus, which goes to `sums`.
template <typename Type>
void normalize_rows(const typename Type::Value* x, const typename Type::Value* plus, int64_t rows, int64_t width,
                    const typename Type::Value* weight, const typename Type::Value* bias, float eps, int threads,
                    typename Type::Value* sums, typename Type::Value* out) {
    const auto each = [width](const auto& f) {
        for (int64_t i = 0; i < width; i += LANES) f(i, first(std::min(width - i, LANES)));
    };
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * width;
        Floats total = everywhere(0.0f), square = everywhere(0.0f);
        each([&](int64_t i, Lanes lanes) {
            Type::store(sums + at + i, lanes, Type::load(lanes, x + at + i) + Type::load(lanes, plus + at + i));
            total = total + Type::load(lanes, sums + at + i);
        });
        alignas(64) float means[LANES];
        store(means, everywhere(total_of(total) / width));
        each([&](int64_t i, Lanes lanes) {  // beyond the last number both are 0
            const Floats apart = Type::load(lanes, sums + at + i) - load(lanes, means);
            square = multiply_add(apart, apart, square);
        });
        const Floats spread = square_root(everywhere(total_of(square) / width + eps));
        each([&](int64_t i, Lanes lanes) {
            const Floats normal = (Type::load(lanes, sums + at + i) - load(means)) / spread;
            Type::store(out + at + i, lanes,
                        multiply_add(normal, Type::load(lanes, weight + i), Type::load(lanes, bias + i)));
        });
    }
}

// --------------------------------------------------------------------------------------------------------- attention

constexpr int64_t QUERIES = 8 * ROWS;  // of one tile of scores
constexpr int64_t KEYS = 512;

// ROWS rows of A, `a_row` words each, times words × columns of B; `ends_at(column)` is what a tile's sums begin and end as.
template <typename Type, typename EndsAt>
void multiply_rows(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, int64_t columns, int64_t words,
                   const EndsAt& ends_at) {
    using Ends = decltype(ends_at(0));
    const uint32_t* lines[ROWS];
    for (int64_t i = 0; i < ROWS; i++) lines[i] = a + i * a_row;
    for (int64_t column = 0; column < columns; column += TILE)
        multiply_of<Type, ROWS, Ends>(std::min(VECTORS, (columns - column) / LANES))(
            lines, 0, 1, 0, b + column, b_row, ends_at(column), words, nullptr);
}

// The softmax of one tile's row, online (Milakov & Gimelshein, 2018): turns scores, the largest of which is `most`, into
// weights and returns what the sums so far must be multiplied by.
template <typename Type>
float weigh(const float* scores, int64_t columns, float most, float scale, typename Type::Value* weights,
            float& largest, float& total) {
    const float before = largest;
    largest = std::max(largest, most);
    // where all keys so far are masked, by -inf, they have no largest score
    const Floats by = everywhere(scale), minus = everywhere(largest == -INFINITE ? 0.0f : -largest * scale);
    Floats sum = everywhere(0.0f);
    for (int64_t i = 0; i < columns; i += LANES) {
        const Floats weight = power_of_two<Type>(multiply_add(load(scores + i), by, minus));
        sum = sum + weight;
        Type::store(weights + i, first(LANES), weight);
    }
    const float shrink = before == largest ? 1.0f : std::exp2((before - largest) * scale);
    total = total * shrink + total_of(sum);
    return shrink;
}

constexpr int64_t AHEAD = 16;  // tokens

// A batch × heads × tokens × width; the last lie side by side.
struct Heads {
    const void* numbers;
    const int64_t* strides;

    template <typename Type>
    const typename Type::Value* at(int64_t image, int64_t head, int64_t token) const {
        const auto* start = static_cast<const typename Type::Value*>(numbers);
        const auto* line = start + image * strides[0] + head * strides[1] + token * strides[2];
        // tokens of one head lie too far apart for the processor to see a line of them
        const auto* later = reinterpret_cast<const char*>(line + AHEAD * strides[2]);
        __builtin_prefetch(later), __builtin_prefetch(later + 64);
        return line;
    }
};

struct Sizes {
    int64_t batch, heads, queries, keys, width;
};

// A head's keys as words of channels × keys and a tile of its queries as rows of words, with zeros around both.
template <typename Type, typename Right>
struct Products {
    using Left = typename Type::Value;
    static constexpr int64_t PER_WORD = Type::PER_WORD;
    const int64_t words, padded_keys;
    const Buffer<Left> queries;
    const Buffer<Right> keys;

    explicit Products(const Sizes& sizes)
        : words((sizes.width + PER_WORD - 1) / PER_WORD),
          padded_keys(round_up(sizes.keys, LANES)),
          queries(allocate<Left>(QUERIES * words * PER_WORD)),
          keys(allocate<Right>(words * padded_keys * PER_WORD)) {
        std::fill_n(queries.get(), QUERIES * words * PER_WORD, Left(0));
        std::fill_n(keys.get(), words * padded_keys * PER_WORD, Right(0));
    }

    Left* query(int64_t row) const { return queries.get() + row * words * PER_WORD; }
    // `count` keys from the `token`th on, words · PER_WORD numbers each.
    void put_keys(int64_t token, int64_t count, const Right* lines) const {
        const auto* line = reinterpret_cast<const uint32_t*>(lines);
        auto* out = reinterpret_cast<uint32_t*>(keys.get()) + token;
        for (int64_t word = 0; word < words; word++, out += padded_keys)
            for (int64_t k = 0; k < count; k++) out[k] = line[k * words + word];
    }
    // ROWS queries from the `row`th on with `wide` keys.
    template <typename EndsAt>
    void multiply(int64_t row, int64_t from, int64_t wide, const EndsAt& ends_at) const {
        multiply_rows<Type>(reinterpret_cast<const uint32_t*>(query(row)), words,
                            reinterpret_cast<const uint32_t*>(keys.get()) + from, padded_keys, wide, words, ends_at);
    }
};

// ROWS lines of KEYS scores, and what is the largest in each place of a register.
struct Tile {
    float* scores;
    Floats* most;

    void put(int row, int64_t at, Floats value) const {
        store(scores + row * KEYS + at, value);
        most[row] = higher(most[row], value);
    }
};

// Scores of numbers as they are. Those of a query are to be multiplied by its factor.
template <typename Type>
struct FloatScores {
    const int64_t width;
    const Products<typename Type::Factor, typename Type::Factor::Value> products;

    FloatScores(const Sizes& sizes, const Heads& key, int64_t image, int64_t head)
        : width(sizes.width), products(sizes) {
        using Number = typename Type::Factor::Value;
        const int64_t numbers = products.words * products.PER_WORD;
        const auto lines = allocate<Number>(LANES * numbers);
        std::fill_n(lines.get(), LANES * numbers, Number(0));
        for (int64_t token = 0; token < sizes.keys; token += LANES) {
            const int64_t here = std::min(LANES, sizes.keys - token);
            for (int64_t k = 0; k < here; k++) {
                const auto* line = key.at<Type>(image, head, token + k);
                std::transform(line, line + width, lines.get() + k * numbers, Type::factor);
            }
            products.put_keys(token, here, lines.get());
        }
    }
    void take(const Heads& query, int64_t image, int64_t head, int64_t begin, int64_t rows) {
        for (int64_t row = 0; row < rows; row++) {
            const auto* token = query.at<Type>(image, head, begin + row);
            std::transform(token, token + width, products.query(row), Type::factor);
        }
    }
    float factor(int64_t) const { return 1; }
    void multiply(int64_t row, int64_t from, int64_t wide, Tile tile) const {
        products.multiply(row, from, wide, [&](int64_t column) { return Ends{tile.scores + column, tile.most}; });
    }

   private:
    struct Ends : Tile {
        Floats begin(int, int64_t) const { return Floats{}; }
        void end(int row, int64_t at, Floats value) const { put(row, at, value); }
    };
};

// Scores of integers, as optsd.optimizations.sage defines them: of queries, and of keys less their mean.
template <typename Type>
struct Int8Scores {
    static constexpr int ZERO = 128;  // of queries, whose integers have no sign
    const int64_t width, columns;
    const Products<Integers, Integers::Signed> products;
    const Buffer<float> lines;  // of QUERIES tokens
    const Buffer<float> key_scale;
    const Buffer<int32_t> extra;  // ZERO times the sum of a key's integers
    float query_scale[QUERIES];

    Int8Scores(const Sizes& sizes, const Heads& key, int64_t image, int64_t head)
        : width(sizes.width),
          columns(round_up(width, LANES)),
          products(sizes),
          lines(allocate<float>(QUERIES * columns)),
          key_scale(allocate<float>(products.padded_keys)),
          extra(allocate<int32_t>(products.padded_keys)) {
        std::fill_n(query_scale, QUERIES, 1.0f);
        std::fill_n(key_scale.get(), products.padded_keys, 0.0f);
        std::fill_n(extra.get(), products.padded_keys, 0);
        const auto sums = allocate<double>(width);
        std::fill_n(sums.get(), width, 0.0);
        for (int64_t token = 0; token < sizes.keys; token++) {
            widen(key.at<Type>(image, head, token), lines.get());
            for (int64_t i = 0; i < width; i++) sums[i] += lines[i];
        }
        const auto mean = allocate<float>(width);
        for (int64_t i = 0; i < width; i++) mean[i] = float(sums[i] / sizes.keys);
        const int64_t numbers = products.words * Integers::PER_WORD;
        const auto integers = allocate<Integers::Signed>(LANES * numbers);
        std::fill_n(integers.get(), LANES * numbers, Integers::Signed(0));
        const auto bytes = allocate<uint8_t>(width);
        for (int64_t token = 0; token < sizes.keys; token += LANES) {
            const int64_t here = std::min(LANES, sizes.keys - token);
            for (int64_t k = 0; k < here; k++) {
                float* line = lines.get() + k * columns;
                widen(key.at<Type>(image, head, token + k), line);
                for (int64_t i = 0; i < width; i++) line[i] -= mean[i];
            }
            for (int64_t k = 0; k < here; k++) {
                key_scale[token + k] = quantize<Bytes>(lines.get() + k * columns, 0, bytes.get());
                int32_t sum = 0;
                for (int64_t i = 0; i < width; i++) {
                    const auto integer = static_cast<int8_t>(bytes[i]);
                    integers[k * numbers + i] = integer;
                    sum += integer;
                }
                extra[token + k] = ZERO * sum;
            }
            products.put_keys(token, here, integers.get());
        }
    }
    void take(const Heads& query, int64_t image, int64_t head, int64_t begin, int64_t rows) {
        // first all of them: what waits for one token's numbers does not wait for the next one's
        for (int64_t row = 0; row < rows; row++) widen(query.at<Type>(image, head, begin + row), lines.get() + row * columns);
        for (int64_t row = 0; row < rows; row++)
            query_scale[row] = quantize<Integers>(lines.get() + row * columns, ZERO, products.query(row));
    }
    float factor(int64_t row) const { return query_scale[row]; }
    void multiply(int64_t row, int64_t from, int64_t wide, Tile tile) const {
        products.multiply(row, from, wide, [&](int64_t column) {
            const int64_t at = from + column;
            return Ends{{tile.scores + column, tile.most}, extra.get() + at, key_scale.get() + at};
        });
    }

   private:
    struct Ends : Tile {
        const int32_t* extra;
        const float* scale;
        Ints begin(int, int64_t) const { return Ints{}; }
        void end(int row, int64_t at, Ints sum) const {
            put(row, at, to_floats(difference(sum, load(extra + at))) * load(scale + at));
        }
    };
    void widen(const typename Type::Value* token, float* line) const {
        for (int64_t i = 0; i < width; i += LANES)
            store(line + i, Type::load(first(std::min(width - i, LANES)), token + i));
    }
    // A line to integers of -127…127, plus `zero`. Returns their scale, NaN where a number is not finite.
    template <typename Result>
    float quantize(const float* line, int zero, typename Result::Value* out) const {
        const Range range = range_of<Float32>(line, width);
        const float largest = std::max(-range.lowest, range.highest), scale = std::max(largest / 127, 1e-30f);
        round_to_bytes<Float32, Result>(line, width, 1 / scale, 1.5f * (1 << 23) + zero, out);
        return range.is_a_number && largest < INFINITE ? scale : NAN;
    }
};

// `mask`: what is added to scores, float32, or null.
template <typename Type, typename Scores>
void attend(const Heads& query, const Heads& key, const Heads& value, const Heads& mask, const Heads& out,
            const Sizes& sizes, float scale, int threads) {
    using Value = typename Type::Value;
    using Factor = typename Type::Factor;
    using Number = typename Factor::Value;
    constexpr int64_t PER_WORD = Factor::PER_WORD;
    const int64_t columns = round_up(sizes.width, LANES), padded_keys = round_up(sizes.keys, LANES);
    // Where there are more threads than heads, each head's queries are shared out.
    const int64_t all_heads = sizes.batch * sizes.heads, tiles = (sizes.queries + QUERIES - 1) / QUERIES;
    const int64_t shares = std::min(tiles, (threads + all_heads - 1) / all_heads);
    const int64_t share = round_up((sizes.queries + shares - 1) / shares, QUERIES);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t item = 0; item < all_heads * shares; item++) {
        const int64_t image = item / shares / sizes.heads, head = item / shares % sizes.heads;
        Scores scores(sizes, key, image, head);

        // Values as words of keys × channels, zeros around them.
        const auto packed_values = allocate<Number>(padded_keys * columns);
        const auto weights = allocate<Number>(ROWS * KEYS);
        const auto tile = allocate<float>(ROWS * KEYS);
        const auto sums = allocate<float>(QUERIES * columns);
        std::fill_n(packed_values.get(), padded_keys * columns, Number(0));
        for (int64_t token = 0; token < sizes.keys; token++) {
            const Value* row = value.at<Type>(image, head, token);
            Number* target = packed_values.get() + token / PER_WORD * columns * PER_WORD + token % PER_WORD;
            for (int64_t i = 0; i < sizes.width; i++) target[i * PER_WORD] = Type::factor(row[i]);
        }
        const auto* value_words = reinterpret_cast<const uint32_t*>(packed_values.get());
        const auto* weight_words = reinterpret_cast<const uint32_t*>(weights.get());

        const int64_t last = std::min(sizes.queries, (item % shares + 1) * share);
        for (int64_t begin = item % shares * share; begin < last; begin += QUERIES) {
            const int64_t real = std::min(QUERIES, last - begin);
            scores.take(query, image, head, begin, real);
            float largest[QUERIES], total[QUERIES];
            std::fill_n(largest, QUERIES, -INFINITE);
            std::fill_n(total, QUERIES, 0.0f);
            for (int64_t from = 0; from < sizes.keys; from += KEYS) {
                const int64_t there = std::min(KEYS, sizes.keys - from), wide = round_up(there, LANES);
                // so few rows at a time that their scores and weights stay in the first cache
                for (int64_t first_row = 0; first_row < real; first_row += ROWS) {
                    Floats most[ROWS];
                    std::fill_n(most, ROWS, everywhere(-INFINITE));
                    scores.multiply(first_row, from, wide, {tile.get(), most});
                    for (int64_t i = 0; i < ROWS; i++) {
                        const int64_t row = first_row + i;
                        float* line = tile.get() + i * KEYS;
                        const float by = scale * scores.factor(row);
                        const bool is_masked = mask.numbers && row < real;
                        if (is_masked) {
                            const float* plus = mask.at<Float32>(image, head, begin + row) + from;
                            for (int64_t k = 0; k < there; k++) line[k] += plus[k] / by;
                        }
                        if (is_masked || there < wide) {
                            std::fill(line + there, line + wide, -INFINITE);
                            most[i] = everywhere(-INFINITE);
                            for (int64_t k = 0; k < wide; k += LANES) most[i] = higher(most[i], load(line + k));
                        }
                        // exp(x) = 2^(x · log2 e)
                        const float shrink = weigh<Factor>(line, wide, highest_of(most[i]), by * 1.44269504f,
                                                           weights.get() + i * KEYS, largest[row], total[row]);
                        if (from)
                            for (int64_t k = 0; k < columns; k++) sums[row * columns + k] *= shrink;
                    }
                    multiply_rows<Factor>(weight_words, KEYS / PER_WORD, value_words + from / PER_WORD * columns,
                                          columns, columns, wide / PER_WORD, [&](int64_t column) {
                                              return InMemory<Factor>{sums.get() + first_row * columns + column,
                                                                      columns, from > 0};
                                          });
                }
            }
            for (int64_t row = 0; row < real; row++) {
                auto* target = const_cast<Value*>(out.at<Type>(image, head, begin + row));
                for (int64_t i = 0; i < sizes.width; i += LANES) {
                    const Floats mean = load(sums.get() + row * columns + i) / everywhere(total[row]);
                    Type::store(target + i, first(std::min(sizes.width - i, LANES)), mean);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// `pictures` of `count` numbers each to bytes, of which `lowest` (0, or -128 for signed ones) stands for the smallest
// number of a picture, with a scale and a zero point each. Returns 0 where one has no finite range, which is then in
// `range`: from its smallest to its largest number, or NaN.
int optsd_quantize(const void* x, int is_bfloat16, int64_t pictures, int64_t count, int lowest, int threads,
                   uint8_t* out, float* scale, int32_t* zero_point, float* range) {
    const auto run = is_bfloat16 ? quantize_each<BFloat16, Bytes> : quantize_each<Float32, Bytes>;
    return run(x, pictures, count, lowest, threads, out, scale, zero_point, range);
}

// A quantized layer: pictures × height × width × channels of numbers, quantized picture by picture, to pictures ×
// out_height × out_width × outputs of the same type. Where `x` is null, `bytes` are taken instead, with a scale and a
// zero point for each picture, and the result is float32. `sizes`: pictures, height, width, channels, outputs; the
// window's rows, columns, stride, dilation (each y, x), top, left, out_height, out_width; inputs / 2 and group size of
// INT4; how far `added` (or null), of the result's type, lies apart for pictures and for pixels. `multipliers`: null for
// INT8. Channels are a multiple of 4, INT8 weights are padded to 16 outputs. With `gated` the result is as wide as half
// the outputs, a multiple of 64: the first half times GELU of the second. Returns 0, with `range` as optsd_quantize
// leaves it, where a picture has no finite range.
int optsd_layer(const void* x, int is_bfloat16, const uint8_t* bytes, const float* scale, const int32_t* zero_point,
                const int8_t* weights, const int8_t* multipliers, const float* weight_scale,
                const int32_t* column_sums, const float* bias, const void* added, int gated, const int64_t* sizes,
                int threads, float* range, void* out) {
    const int64_t count = sizes[1] * sizes[2] * sizes[3];
    const auto integers = allocate<Integers::Value>(sizes[0] * count);
    const auto scales_found = allocate<float>(sizes[0]);
    const auto zeros_found = allocate<int32_t>(sizes[0]);
    if (x) {
        const auto run = is_bfloat16 ? quantize_each<BFloat16, Integers> : quantize_each<Float32, Integers>;
        if (!run(x, sizes[0], count, 0, threads, integers.get(), scales_found.get(), zeros_found.get(), range))
            return 0;
        scale = scales_found.get(), zero_point = zeros_found.get();
    } else {
        std::copy_n(bytes, sizes[0] * count, integers.get());
    }
    const Pictures pictures{integers.get(), sizes[0], sizes[1], sizes[2], sizes[3]};
    const Window window{sizes[5],  sizes[6],  sizes[7],  sizes[8],  sizes[9],
                        sizes[10], sizes[11], sizes[12], sizes[13], sizes[14]};
    const Int8Weights int8{weights, window.rows * window.columns * pictures.channels};
    const Int4Weights int4{weights, multipliers, sizes[4], sizes[15], sizes[16]};
    const Scales scales{scale, zero_point, weight_scale, column_sums, bias, {added, sizes[17], sizes[18]}};
    const auto run = [&](auto type, const auto& right) {
        using Type = decltype(type);
        convolve<Type>(pictures, window, right, sizes[4], gated, scales, threads,
                       static_cast<typename Type::Value*>(out));
    };
    const bool to_bfloat16 = x && is_bfloat16;
    if (multipliers)
        to_bfloat16 ? run(BFloat16(), int4) : run(Float32(), int4);
    else
        to_bfloat16 ? run(BFloat16(), int8) : run(Float32(), int8);
    return 1;
}

// rows × 2·width to rows × width, bfloat16: the first half of each row times GELU of the second.
void optsd_geglu(const uint16_t* x, int64_t rows, int64_t width, int threads, uint16_t* out) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i += LANES) {
            const Lanes lanes = first(std::min(width - i, LANES));
            const uint16_t* from = x + row * 2 * width + i;
            const Floats gate = gelu(BFloat16::load(lanes, from + width));
            BFloat16::store(out + row * width + i, lanes, BFloat16::load(lanes, from) * gate);
        }
}

// The group normalization of batch × pixels × channels bfloat16 numbers, and SiLU of it or not.
void optsd_group_norm(const uint16_t* x, int64_t batch, int64_t pixels, int64_t channels, int64_t groups,
                      const uint16_t* weight, const uint16_t* bias, float eps, int with_silu, int threads,
                      uint16_t* out) {
    normalize_groups<BFloat16>(x, batch, pixels, channels, groups, weight, bias, eps, with_silu, threads, out);
}

// rows × width of bfloat16 numbers, `plus` as many, to `sums`; and the layer normalization of those to `out`.
void optsd_add_layer_norm(const uint16_t* x, const uint16_t* plus, int64_t rows, int64_t width, const uint16_t* weight,
                          const uint16_t* bias, float eps, int threads, uint16_t* sums, uint16_t* out) {
    normalize_rows<BFloat16>(x, plus, rows, width, weight, bias, eps, threads, sums, out);
}

// softmax(scale · Q Kᵀ + mask) V of float32 or bfloat16, with float32 sums; Q Kᵀ of their INT8 integers with `is_int8`.
// Strides are those of batch, head and token, in numbers; a token's `width` numbers, and a query's float32 of the mask,
// lie side by side. The mask may be null. `sizes`: batch, heads, queries, keys, width.
void optsd_attention(const void* query, const int64_t* query_strides, const void* key, const int64_t* key_strides,
                     const void* value, const int64_t* value_strides, const void* mask, const int64_t* mask_strides,
                     void* out, const int64_t* out_strides, int is_bfloat16, int is_int8, const int64_t* sizes,
                     float scale, int threads) {
    const auto run = is_int8 ? is_bfloat16 ? attend<BFloat16, Int8Scores<BFloat16>> : attend<Float32, Int8Scores<Float32>>
                     : is_bfloat16 ? attend<BFloat16, FloatScores<BFloat16>>
                                   : attend<Float32, FloatScores<Float32>>;
    run({query, query_strides}, {key, key_strides}, {value, value_strides}, {mask, mask_strides}, {out, out_strides},
        {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}, scale, threads);
}
}
