// The CPU's own kernels: quantized activations and layers, group normalization with SiLU, GEGLU and flash attention.
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

// C (ROWS × LANES·VECTORS sums) = or += A · B (words × columns). All sums stay in registers. A's rows come in `parts` of
// `words`: row i of part j begins at a[j · a_step + i], plus `from`.
template <typename Type, int ROWS, int VECTORS>
void multiply(const uint32_t* const* a, int64_t a_step, int64_t parts, int64_t from, const uint32_t* b, int64_t b_row,
              typename Type::Sum* c, int64_t c_row, int64_t words, bool add) {
    typename Type::Sums sums[ROWS][VECTORS];
    UNROLLED for (int row = 0; row < ROWS; row++)
        UNROLLED for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] = add ? load(c + row * c_row + vector * LANES) : typename Type::Sums{};
    for (int64_t part = 0; part < parts; part++, a += a_step) {
        const uint32_t* lines[ROWS];
        UNROLLED for (int row = 0; row < ROWS; row++) lines[row] = a[row] + from;
        for (int64_t word = 0; word < words; word++, b += b_row) {
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
        UNROLLED for (int vector = 0; vector < VECTORS; vector++)
            store(c + row * c_row + vector * LANES, sums[row][vector]);
}

template <typename Type, int ROWS, int MOST = VECTORS>
auto multiply_of(int64_t vectors) -> decltype(&multiply<Type, ROWS, 1>) {
    if constexpr (MOST > 1)
        if (vectors < MOST) return multiply_of<Type, ROWS, MOST - 1>(vectors);
    return multiply<Type, ROWS, MOST>;
}

// ---------------------------------------------------------------------------------------------- quantized activations

template <typename Type>
void find_range(const typename Type::Value* x, int64_t count, int threads, float* range) {
    float lowest = 0, highest = 0;
    bool is_a_number = true;
    threads = threads_for(count, threads);
#pragma omp parallel for num_threads(threads) reduction(min : lowest) reduction(max : highest) \
    reduction(&& : is_a_number)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t share = round_up((count + threads - 1) / threads, 4 * LANES);
        const int64_t begin = std::min(count, thread * share), end = std::min(count, begin + share);
        Floats low[4], high[4];
        Flags nan{};
        for (int part = 0; part < 4; part++) low[part] = high[part] = everywhere(0.0f);
        int64_t i = begin;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            for (int part = 0; part < 4; part++) {
                const Floats value = Type::load(x + i + part * LANES);
                low[part] = lower(low[part], value);
                high[part] = higher(high[part], value);
                nan = either(nan, is_nan(value));
            }
        for (; i < end; i += LANES) {
            const Floats value = Type::load(first(std::min(end - i, LANES)), x + i);
            low[0] = lower(low[0], value);
            high[0] = higher(high[0], value);
            nan = either(nan, is_nan(value));
        }
        for (int part = 0; part < 4; part++) {
            lowest = std::min(lowest, lowest_of(low[part]));
            highest = std::max(highest, highest_of(high[part]));
        }
        is_a_number = is_a_number && !any(nan);
    }
    range[0] = is_a_number ? lowest : NAN;
    range[1] = is_a_number ? highest : NAN;
}

// To the low bytes of x · factor + shift.
template <typename Type, typename Result>
void quantize(const typename Type::Value* x, int64_t count, float factor, float shift, int threads,
              typename Result::Value* out) {
    const Floats by = everywhere(factor), plus = everywhere(shift);
#pragma omp parallel for num_threads(threads_for(count, threads))
    for (int64_t i = 0; i < count; i += LANES) {
        const Lanes lanes = first(std::min(count - i, LANES));
        Result::store(out + i, lanes, bits_of(multiply_add(Type::load(lanes, x + i), by, plus)));
    }
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
};

struct Picture {
    const Integers::Value* numbers;
    int64_t batch, height, width, channels;
};

struct Window {
    int64_t rows, columns, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width;
};

// For each place in the window, and for each pixel of the result, its line of channels; past the border, `border`.
Buffer<const uint32_t*> find_lines(const Picture& picture, const Window& window, const Integers::Value* border,
                                   int64_t step) {
    const int64_t pixels = picture.batch * window.out_height * window.out_width;
    auto lines = allocate<const uint32_t*>(window.rows * window.columns * step);
    const auto words = [](const Integers::Value* line) { return reinterpret_cast<const uint32_t*>(line); };
    for (int64_t place = 0; place < window.rows * window.columns; place++) {
        const uint32_t** line = lines.get() + place * step;
        std::fill(line + pixels, line + step, words(border));
        for (int64_t i = 0; i < picture.batch * window.out_height; i++) {
            const int64_t y = i % window.out_height * window.stride_y - window.top +
                              place / window.columns * window.dilation_y;
            const bool is_inside = y >= 0 && y < picture.height;
            const Integers::Value* row =
                picture.numbers + (i / window.out_height * picture.height + y) * picture.width * picture.channels;
            int64_t x = place % window.columns * window.dilation_x - window.left;
            for (int64_t j = 0; j < window.out_width; j++, x += window.stride_x)
                *line++ = words(is_inside && x >= 0 && x < picture.width ? row + x * picture.channels : border);
        }
    }
    return lines;
}

// What turns sums into numbers.
struct Scales {
    float scale;
    int zero_point;
    const float* weight_scale;
    const int32_t* column_sums;
    const float* bias;  // or null

    // rows × columns of sums to as many rows of `out`, whose outputs from the `output`th on they are.
    template <typename Type>
    void finish(const int32_t* sums, int64_t rows, int64_t columns, int64_t output, int64_t outputs,
                typename Type::Value* out) const {
        Ints extra[PANEL / LANES];
        Floats factor[PANEL / LANES], offset[PANEL / LANES];
        Lanes lanes[PANEL / LANES];
        const int64_t vectors = columns / LANES;
        for (int64_t i = 0; i < vectors; i++) {
            const int64_t at = output + i * LANES;
            lanes[i] = first(std::clamp<int64_t>(outputs - at, 0, LANES));
            extra[i] = product(load(lanes[i], column_sums + at), everywhere(zero_point));
            factor[i] = load(lanes[i], weight_scale + at) * everywhere(scale);
            offset[i] = bias ? load(lanes[i], bias + at) : everywhere(0.0f);
        }
        for (int64_t row = 0; row < rows; row++, sums += columns, out += outputs)
            for (int64_t i = 0; i < vectors; i++) {
                const Floats exact = to_floats(difference(load(sums + i * LANES), extra[i]));
                Type::store(out + output + i * LANES, lanes[i], multiply_add(exact, factor[i], offset[i]));
            }
    }
};

template <typename Type, typename Weights>
void convolve(const Picture& picture, const Window& window, const Weights& weights, int64_t outputs,
              const Scales& scales, int threads, typename Type::Value* out) {
    const int64_t channels = picture.channels, places = window.rows * window.columns;
    const int64_t pixels = picture.batch * window.out_height * window.out_width;
    const auto border = allocate<Integers::Value>(channels);
    std::fill_n(border.get(), channels, static_cast<Integers::Value>(scales.zero_point));
    const int64_t step = round_up(pixels, 2);
    const auto lines = find_lines(picture, window, border.get(), step);

    // A block of weights is that of several places, or of a part of the channels of one.
    const int64_t block_places = std::max<int64_t>(1, BLOCK / channels);
    const int64_t parts = (channels + BLOCK - 1) / BLOCK, part = round_up((channels + parts - 1) / parts, 4);

    // Enough items that no thread waits long for the last one.
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    const int64_t shares = std::max((pixels + SHARE - 1) / SHARE, (8 * threads + panels - 1) / panels);
    const int64_t share = round_up((pixels + shares - 1) / shares, ROWS);
    const int64_t products = pixels * outputs * places * channels;  // 64 of them take as long as one number elsewhere
#pragma omp parallel for num_threads(threads_for(products / 64, threads)) schedule(dynamic)
    for (int64_t item = 0; item < panels * shares; item++) {
        const int64_t output = item / shares * PANEL, begin = item % shares * share;
        const int64_t count = std::min(share, pixels - begin);
        if (count <= 0) continue;
        // kept from call to call: fresh memory would have to be zeroed by the system
        alignas(64) static thread_local int32_t sums[SHARE * PANEL];
        alignas(64) static thread_local uint32_t words[PANEL * BLOCK / Integers::PER_WORD];
        const int64_t columns = std::min(PANEL, round_up(outputs - output, 16));  // as many as there are packed
        for (int64_t place = 0; place < places; place += block_places)
            for (int64_t channel = 0; channel < channels; channel += part) {
                const int64_t here = std::min(block_places, places - place), width = std::min(part, channels - channel);
                const uint32_t* blocks[PANEL / TILE];
                for (int64_t tile = 0; tile < columns; tile += TILE)
                    blocks[tile / TILE] =
                        weights.block(output + tile, std::min(TILE, columns - tile), place * channels + channel,
                                      here * width, words + tile * BLOCK / Integers::PER_WORD);
                for (int64_t row = 0; row < count;) {
                    const bool is_whole = count - row >= ROWS;
                    for (int64_t tile = 0; tile < columns; tile += TILE) {
                        const int64_t wide = std::min(TILE, columns - tile);
                        const auto run = is_whole ? multiply_of<Integers, ROWS>(wide / LANES)
                                                  : multiply_of<Integers, 2>(wide / LANES);
                        run(lines.get() + place * step + begin + row, step, here, channel / Integers::PER_WORD,
                            blocks[tile / TILE], wide, sums + row * columns + tile, columns,
                            width / Integers::PER_WORD, place + channel > 0);
                    }
                    row += is_whole ? ROWS : 2;
                }
            }
        scales.finish<Type>(sums, count, columns, output, outputs, out + begin * outputs);
    }
}

// ------------------------------------------------------------------------------------------------------ exponentials

// 2^x for x <= 0, to 2e-7 of it; below 2^-126 it may be 0.
Floats power_of_two(Floats x) {
    x = higher(everywhere(-127.0f), x);  // in this order: a NaN stays
    const Floats whole = rounded(x), part = x - whole;
    // the Taylor series of 2^part, |part| <= 0.5
    Floats sum = everywhere(1.3333558e-3f);
    for (const float coefficient : {9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f})
        sum = multiply_add(sum, part, everywhere(coefficient));
    return times_power_of_two(sum, whole);
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

// ----------------------------------------------------------------------------------------------- group normalization

// One image's channels from `from` to `to`, whole groups, of pixels × channels numbers.
template <typename Type>
void normalize_groups(const typename Type::Value* x, int64_t pixels, int64_t channels, int64_t from, int64_t to,
                      int64_t size, const typename Type::Value* weight, const typename Type::Value* bias, float eps,
                      typename Type::Value* out) {
    const int64_t width = round_up(to - from, LANES);
    const auto means = allocate<float>(width), sums = allocate<float>(width);
    // f(value, place in the line, lanes) for each number
    const auto each = [&](const auto& f) {
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int64_t i = 0; i < to - from; i += LANES) {
                const Lanes lanes = first(std::min(to - from - i, LANES));
                f(Type::load(lanes, x + pixel * channels + from + i), pixel, i, lanes);
            }
    };
    // each channel gets the mean of its group's sums
    const auto average = [&](float* result) {
        for (int64_t group = 0; group < to - from; group += size) {
            double total = 0;
            for (int64_t i = 0; i < size; i++) total += sums[group + i];
            std::fill_n(result + group, size, float(total / (pixels * size)));
        }
    };
    std::fill_n(sums.get(), width, 0.0f);
    each([&](Floats value, int64_t, int64_t i, Lanes) { store(sums.get() + i, load(sums.get() + i) + value); });
    average(means.get());
    std::fill_n(sums.get(), width, 0.0f);
    each([&](Floats value, int64_t, int64_t i, Lanes) {
        const Floats from_mean = value - load(means.get() + i);
        store(sums.get() + i, multiply_add(from_mean, from_mean, load(sums.get() + i)));
    });
    average(sums.get());
    // from here on: x · sums + means
    for (int64_t i = 0; i < to - from; i += LANES) {
        const Lanes lanes = first(std::min(to - from - i, LANES));
        const Floats factor = Type::load(lanes, weight + from + i) / square_root(load(sums.get() + i) + everywhere(eps));
        store(means.get() + i, multiply_add(-load(means.get() + i), factor, Type::load(lanes, bias + from + i)));
        store(sums.get() + i, factor);
    }
    each([&](Floats value, int64_t pixel, int64_t i, Lanes lanes) {
        const Floats normal = multiply_add(value, load(sums.get() + i), load(means.get() + i));
        Type::store(out + pixel * channels + from + i, lanes, silu(normal));
    });
}

// --------------------------------------------------------------------------------------------------- flash attention

constexpr int64_t QUERIES = 8 * ROWS;  // of one tile of scores
constexpr int64_t KEYS = 512;

template <typename Type>
void multiply_tile(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, float* c, int64_t c_row,
                   int64_t rows, int64_t columns, int64_t words, bool add) {
    for (int64_t column = 0; column < columns; column += TILE) {
        const auto run = multiply_of<Type, ROWS>(std::min(VECTORS, (columns - column) / LANES));
        for (int64_t row = 0; row < rows; row += ROWS) {
            const uint32_t* lines[ROWS];
            for (int64_t i = 0; i < ROWS; i++) lines[i] = a + (row + i) * a_row;
            run(lines, 0, 1, 0, b + column, b_row, c + row * c_row + column, c_row, words, add);
        }
    }
}

// The softmax of one tile's row, online (Milakov & Gimelshein, 2018): turns scores into weights and returns what the
// sums so far must be multiplied by.
template <typename Type>
float weigh(const float* scores, int64_t columns, float scale, typename Type::Value* weights, float& largest,
            float& total) {
    Floats most = everywhere(largest);
    for (int64_t i = 0; i < columns; i += LANES) most = higher(most, load(scores + i));
    const float before = largest;
    largest = highest_of(most);
    const Floats by = everywhere(scale), minus = everywhere(-largest * scale);
    Floats sum = everywhere(0.0f);
    for (int64_t i = 0; i < columns; i += LANES) {
        const Floats weight = power_of_two(multiply_add(load(scores + i), by, minus));
        sum = sum + weight;
        Type::store(weights + i, first(LANES), weight);
    }
    const float shrink = std::exp2((before - largest) * scale);
    total = total * shrink + total_of(sum);
    return shrink;
}

// A batch × heads × tokens × width; the last lie side by side.
struct Heads {
    const void* numbers;
    const int64_t* strides;

    template <typename Type>
    const typename Type::Value* at(int64_t image, int64_t head, int64_t token) const {
        const auto* start = static_cast<const typename Type::Value*>(numbers);
        return start + image * strides[0] + head * strides[1] + token * strides[2];
    }
};

template <typename Type>
void attend(Heads query, Heads key, Heads value, Heads out, int64_t batch, int64_t heads, int64_t queries,
            int64_t keys, int64_t width, float scale, int threads) {
    using Value = typename Type::Value;
    using Factor = typename Type::Factor;
    using Number = typename Factor::Value;
    constexpr int64_t PER_WORD = Factor::PER_WORD;
    const int64_t words = (width + PER_WORD - 1) / PER_WORD, columns = round_up(width, LANES);
    const int64_t padded_keys = round_up(keys, LANES);
    // Where there are more threads than heads, each head's queries are shared out.
    const int64_t shares = std::min((queries + QUERIES - 1) / QUERIES, (threads + batch * heads - 1) / (batch * heads));
    const int64_t share = round_up((queries + shares - 1) / shares, QUERIES);
    const float base_two = scale * 1.44269504f;  // exp(x) = 2^(x · log2 e)
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t item = 0; item < batch * heads * shares; item++) {
        const int64_t image = item / shares / heads, head = item / shares % heads;

        // Keys as words of channels × keys, values as words of keys × channels, zeros around both.
        const auto packed_keys = allocate<Number>(words * padded_keys * PER_WORD);
        const auto packed_values = allocate<Number>(padded_keys * columns);
        const auto packed_queries = allocate<Number>(QUERIES * words * PER_WORD);
        const auto weights = allocate<Number>(QUERIES * KEYS);
        const auto scores = allocate<float>(QUERIES * KEYS);
        const auto sums = allocate<float>(QUERIES * columns);
        std::fill_n(packed_keys.get(), words * padded_keys * PER_WORD, Number(0));
        std::fill_n(packed_values.get(), padded_keys * columns, Number(0));
        std::fill_n(packed_queries.get(), QUERIES * words * PER_WORD, Number(0));
        // LANES keys at a time: the words of one lie 4 · padded_keys bytes apart, often in one set of the cache
        for (int64_t token = 0; token < keys; token += LANES)
            for (int64_t i = 0; i < width; i++)
                for (int64_t k = token; k < std::min(keys, token + LANES); k++)
                    packed_keys[(i / PER_WORD * padded_keys + k) * PER_WORD + i % PER_WORD] =
                        Type::factor(key.at<Type>(image, head, k)[i]);
        for (int64_t token = 0; token < keys; token++) {
            const Value* row = value.at<Type>(image, head, token);
            Number* target = packed_values.get() + token / PER_WORD * columns * PER_WORD + token % PER_WORD;
            for (int64_t i = 0; i < width; i++) target[i * PER_WORD] = Type::factor(row[i]);
        }
        const auto* key_words = reinterpret_cast<const uint32_t*>(packed_keys.get());
        const auto* value_words = reinterpret_cast<const uint32_t*>(packed_values.get());
        const auto* query_words = reinterpret_cast<const uint32_t*>(packed_queries.get());
        const auto* weight_words = reinterpret_cast<const uint32_t*>(weights.get());

        const int64_t last = std::min(queries, (item % shares + 1) * share);
        for (int64_t begin = item % shares * share; begin < last; begin += QUERIES) {
            const int64_t real = std::min(QUERIES, last - begin), rows = round_up(real, ROWS);
            for (int64_t row = 0; row < real; row++)
                std::transform(query.at<Type>(image, head, begin + row), query.at<Type>(image, head, begin + row) + width,
                               packed_queries.get() + row * words * PER_WORD, Type::factor);
            float largest[QUERIES], total[QUERIES];
            std::fill_n(largest, QUERIES, -INFINITE);
            std::fill_n(total, QUERIES, 0.0f);
            std::fill_n(sums.get(), QUERIES * columns, 0.0f);
            for (int64_t from = 0; from < keys; from += KEYS) {
                const int64_t there = std::min(KEYS, keys - from), wide = round_up(there, LANES);
                multiply_tile<Factor>(query_words, words, key_words + from, padded_keys, scores.get(), KEYS, rows, wide,
                                    words, false);
                for (int64_t row = 0; row < rows; row++) {
                    float* line = scores.get() + row * KEYS;
                    std::fill(line + there, line + wide, -INFINITE);
                    Number* weight = weights.get() + row * KEYS;
                    const float shrink = weigh<Factor>(line, wide, base_two, weight, largest[row], total[row]);
                    if (from)
                        for (int64_t i = 0; i < columns; i++) sums[row * columns + i] *= shrink;
                }
                multiply_tile<Factor>(weight_words, KEYS / PER_WORD, value_words + from / PER_WORD * columns, columns,
                                    sums.get(), columns, rows, columns, wide / PER_WORD, true);
            }
            for (int64_t row = 0; row < real; row++) {
                auto* target = const_cast<Value*>(out.at<Type>(image, head, begin + row));
                for (int64_t i = 0; i < width; i += LANES) {
                    const Floats mean = load(sums.get() + row * columns + i) / everywhere(total[row]);
                    Type::store(target + i, first(std::min(width - i, LANES)), mean);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// The smallest and the largest of `count` numbers and 0; both NaN where one of them is.
void optsd_range(const void* x, int is_bfloat16, int64_t count, int threads, float* range) {
    if (is_bfloat16)
        find_range<BFloat16>(static_cast<const uint16_t*>(x), count, threads, range);
    else
        find_range<Float32>(static_cast<const float*>(x), count, threads, range);
}

// The low byte of x · factor + shift, where shift's last binary digit is worth 1.
void optsd_quantize(const void* x, int is_bfloat16, int64_t count, float factor, float shift, int threads,
                    uint8_t* out) {
    if (is_bfloat16)
        quantize<BFloat16, Bytes>(static_cast<const uint16_t*>(x), count, factor, shift, threads, out);
    else
        quantize<Float32, Bytes>(static_cast<const float*>(x), count, factor, shift, threads, out);
}

// A quantized layer: batch × height × width × channels of numbers, quantized by their own range, to batch × out_height ×
// out_width × outputs of the same type. Where `x` is null, `bytes` are taken instead, by `scale` and `zero_point`, and
// the result is float32. `sizes`: batch, height, width, channels, outputs; the window's rows, columns, stride, dilation
// (each y, x), top, left, out_height, out_width; inputs / 2 and group size of INT4. `multipliers`: null for INT8.
// Channels are a multiple of 4, INT8 weights are padded to 16 outputs. Returns 0, with `range` as optsd_range gives it,
// where x has no finite range.
int optsd_layer(const void* x, int is_bfloat16, const uint8_t* bytes, float scale, int zero_point,
                const int8_t* weights, const int8_t* multipliers, const float* weight_scale, const int32_t* column_sums,
                const float* bias, const int64_t* sizes, int threads, float* range, void* out) {
    const int64_t count = sizes[0] * sizes[1] * sizes[2] * sizes[3];
    const auto integers = allocate<Integers::Value>(count);
    if (x) {
        // as optsd.quantization.schemes.quantize_activation does it
        optsd_range(x, is_bfloat16, count, threads, range);
        const double step = (double(range[1]) - range[0]) / 254;
        if (!(step < INFINITE)) return 0;
        const double by = std::max(step, 1e-30), zero = std::ceil(-range[0] / by);
        const float factor = float(1 / by), shift = float(1.5 * (1 << 23) + zero);
        if (is_bfloat16)
            quantize<BFloat16, Integers>(static_cast<const uint16_t*>(x), count, factor, shift, threads, integers.get());
        else
            quantize<Float32, Integers>(static_cast<const float*>(x), count, factor, shift, threads, integers.get());
        scale = float(by), zero_point = int(zero);
    } else {
        std::copy_n(bytes, count, integers.get());
    }
    const Picture picture{integers.get(), sizes[0], sizes[1], sizes[2], sizes[3]};
    const Window window{sizes[5],  sizes[6],  sizes[7],  sizes[8],  sizes[9],
                        sizes[10], sizes[11], sizes[12], sizes[13], sizes[14]};
    const Int8Weights int8{weights, window.rows * window.columns * picture.channels};
    const Int4Weights int4{weights, multipliers, sizes[4], sizes[15], sizes[16]};
    const Scales scales{scale, zero_point, weight_scale, column_sums, bias};
    const auto run = [&](auto type, const auto& right) {
        using Type = decltype(type);
        convolve<Type>(picture, window, right, sizes[4], scales, threads, static_cast<typename Type::Value*>(out));
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

// SiLU of the group normalization of batch × pixels × channels bfloat16 numbers.
void optsd_group_norm_silu(const uint16_t* x, int64_t batch, int64_t pixels, int64_t channels, int64_t groups,
                           const uint16_t* weight, const uint16_t* bias, float eps, int threads, uint16_t* out) {
    const int64_t size = channels / groups, shares = std::min<int64_t>(groups, (threads + batch - 1) / batch);
    const int64_t share = (groups + shares - 1) / shares * size;
#pragma omp parallel for num_threads(threads_for(batch * pixels * channels, threads))
    for (int64_t item = 0; item < batch * shares; item++) {
        const int64_t image = item / shares * pixels * channels, from = std::min(channels, item % shares * share);
        normalize_groups<BFloat16>(x + image, pixels, channels, from, std::min(channels, from + share), size, weight,
                                   bias, eps, out + image);
    }
}

// softmax(scale · Q Kᵀ) V of float32 or bfloat16, with float32 sums. Strides are those of batch, head and token, in
// numbers; a token's `width` numbers lie side by side.
void optsd_attention(const void* query, const int64_t* query_strides, const void* key, const int64_t* key_strides,
                     const void* value, const int64_t* value_strides, void* out, const int64_t* out_strides,
                     int is_bfloat16, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t width,
                     float scale, int threads) {
    const auto run = is_bfloat16 ? attend<BFloat16> : attend<Float32>;
    run({query, query_strides}, {key, key_strides}, {value, value_strides}, {out, out_strides}, batch, heads, queries,
        keys, width, scale, threads);
}
}
