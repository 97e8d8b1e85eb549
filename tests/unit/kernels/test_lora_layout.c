/* The tile order against a walk that follows kernels.h's words tile by tile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "tests/unit/crash.h"
#include "tests/unit/seed.h"

static const uint64_t page_elems_table[] = {2048, 2560, 3072, 4096, 12288};
static const uint32_t rank_table[] = {1, 4, 8, 9, 16, 24, 31, 32, 33, 40, 64, 120, 512};
static const uint32_t column_table[] = {1, 63, 64, 65, 192, 576, 1000};

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

/* The words of kernels.h: skip to the next page where a tile does not fit. */
static uint64_t next_tile(uint64_t page_elems, uint64_t cursor, uint32_t tile_elems) {
    uint64_t offset = cursor % page_elems;
    return offset + tile_elems > page_elems ? cursor - offset + page_elems : cursor;
}

static void places_check(uint64_t page_elems, uint64_t begin, uint32_t rank, uint32_t columns) {
    uint64_t cursor = begin;
    for (uint32_t r = 0; r < rank; r += KERN_BLOCK_RANKS) {
        uint32_t ranks = rank - r < KERN_BLOCK_RANKS ? rank - r : KERN_BLOCK_RANKS;
        uint32_t tile_elems = ranks * KERN_TILE_COLUMNS;
        for (uint32_t c = 0; c < columns; c += KERN_TILE_COLUMNS) {
            cursor = next_tile(page_elems, cursor, tile_elems);
            uint64_t place = kern_tile_begin(page_elems, begin, rank, columns, r / KERN_BLOCK_RANKS,
                                             c / KERN_TILE_COLUMNS);
            assert_int_equal(place, cursor);
            assert_int_equal(place / page_elems, (place + tile_elems - 1) / page_elems);
            assert_int_equal(place * sizeof(uint16_t) % 128, 0); /* aligned on every device */
            cursor += tile_elems;
        }
    }
    assert_int_equal(kern_matrix_end(page_elems, begin, rank, columns), cursor);
}

static void places_check_columns(uint64_t page_elems, uint64_t begin, uint32_t rank) {
    for (size_t c = 0; c < COUNT(column_table); c++) {
        places_check(page_elems, begin, kern_rank_padded(rank), column_table[c]);
    }
}

static void test_places(void **state) {
    (void)state;
    for (size_t p = 0; p < COUNT(page_elems_table); p++) {
        uint64_t elems = page_elems_table[p];
        const uint64_t begins[] = {0, 64, 512, elems - 64, elems - 512, elems, 3 * elems + 1984};
        for (size_t r = 0; r < COUNT(rank_table); r++) {
            for (size_t b = 0; b < COUNT(begins); b++) {
                places_check_columns(elems, begins[b], rank_table[r]);
            }
        }
    }
}

static void test_places_at_random(void **state) {
    (void)state;
    uint64_t seed = seed_take(1);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 3000; i++) {
        uint64_t elems = KERN_TILE_ELEMENTS + 64 * (uint64_t)seed_below(&seed, 200);
        uint32_t rank = kern_rank_padded(1 + seed_below(&seed, KERN_RANK_MAX));
        places_check(elems, 64 * (uint64_t)seed_below(&seed, 1000), rank,
                     1 + seed_below(&seed, 3000));
    }
}

/* ---- round trip --------------------------------------------------------------------------- */

static float value_of(uint32_t matrix, uint32_t row, uint32_t column) {
    return (float)(1 + matrix * 600000 + row * 1000 + column);
}

/* A stored matrix as a kernel finds it. */
struct stored {
    const float *image;
    uint64_t page_elems, begin;
    uint32_t rank, columns;
    bool rank_inner;
};

static float stored_at(const struct stored *s, uint32_t r, uint32_t c) {
    uint32_t block = r / KERN_BLOCK_RANKS, ranks = s->rank - block * KERN_BLOCK_RANKS;
    ranks = ranks < KERN_BLOCK_RANKS ? ranks : KERN_BLOCK_RANKS;
    size_t in_rank = r % KERN_BLOCK_RANKS, in_column = c % KERN_TILE_COLUMNS;
    const float *tile = s->image + kern_tile_begin(s->page_elems, s->begin, s->rank, s->columns,
                                                   block, c / KERN_TILE_COLUMNS);
    return s->rank_inner ? tile[in_column * ranks + in_rank]
                         : tile[in_rank * KERN_TILE_COLUMNS + in_column];
}

static void stored_check(const struct stored *s, uint32_t matrix, uint32_t rank_true) {
    for (uint32_t r = 0; r < rank_true; r++) {
        for (uint32_t c = 0; c < s->columns; c++) {
            assert_true(stored_at(s, r, c) == value_of(matrix, r, c));
        }
    }
}

static float *filled(uint32_t matrix, uint32_t rank, uint32_t columns, bool rank_inner) {
    float *m = calloc((size_t)rank * columns, sizeof *m);
    assert_non_null(m);
    for (uint32_t r = 0; r < rank; r++) {
        for (uint32_t c = 0; c < columns; c++) {
            m[rank_inner ? (size_t)c * rank + r : (size_t)r * columns + c] = value_of(matrix, r, c);
        }
    }
    return m;
}

/* The same image, converted as a whole or matrix by matrix on its way. */
static void same_in_halves(uint64_t page_elems, const struct kern_lora *lora, const float *image,
                           uint64_t end, const struct kern_source *a, const struct kern_source *b) {
    uint16_t *whole = calloc(end, sizeof *whole), *parts = calloc(end, sizeof *parts);
    uint16_t *halves = calloc((size_t)b->rank * b->columns, sizeof *halves);
    assert_true(whole != NULL && parts != NULL && halves != NULL);
    kern_convert(whole, KERN_BF16, image, KERN_F32, end);
    kern_matrix_store_a(parts, KERN_BF16, page_elems, lora, a);
    kern_convert(halves, KERN_BF16, b->data, KERN_F32, (uint64_t)b->rank * b->columns);
    const struct kern_source stored = {halves, KERN_BF16, b->rank, b->columns};
    kern_matrix_store_b(parts, KERN_BF16, page_elems, lora, &stored);
    assert_memory_equal(whole, parts, end * sizeof *whole);
    free(whole);
    free(parts);
    free(halves);
}

static void round_trip(uint64_t page_elems, uint32_t rank_true, uint32_t in, uint32_t out) {
    struct kern_lora lora = {.rank = kern_rank_padded(rank_true), .a = 64};
    lora.b = kern_matrix_end(page_elems, lora.a, lora.rank, in);
    uint64_t end = kern_matrix_end(page_elems, lora.b, lora.rank, out);
    float *image = calloc(end, sizeof *image); /* exact: the sanitizer sees a write beyond */
    assert_non_null(image);
    float *a = filled(0, rank_true, in, false), *b = filled(1, rank_true, out, true);
    const struct kern_source source_a = {a, KERN_F32, rank_true, in};
    const struct kern_source source_b = {b, KERN_F32, rank_true, out};
    kern_matrix_store_a(image, KERN_F32, page_elems, &lora, &source_a);
    kern_matrix_store_b(image, KERN_F32, page_elems, &lora, &source_b);
    same_in_halves(page_elems, &lora, image, end, &source_a, &source_b);
    uint64_t nonzero = 0;
    for (uint64_t i = 0; i < end; i++) {
        nonzero += image[i] != 0;
    }
    assert_int_equal(nonzero, (uint64_t)rank_true * (in + out)); /* padding and skips are zero */
    struct stored stored = {.image = image,
                            .page_elems = page_elems,
                            .begin = lora.a,
                            .rank = lora.rank,
                            .columns = in};
    stored_check(&stored, 0, rank_true);
    stored.begin = lora.b;
    stored.columns = out;
    stored.rank_inner = true;
    stored_check(&stored, 1, rank_true);
    free(a);
    free(b);
    free(image);
}

static void test_round_trip(void **state) {
    (void)state;
    for (size_t p = 0; p < COUNT(page_elems_table); p++) {
        for (size_t r = 0; r < COUNT(rank_table); r++) {
            round_trip(page_elems_table[p], rank_table[r], 576, 192);
            round_trip(page_elems_table[p], rank_table[r], 100, 65);
        }
    }
}

/* ---- shapes ------------------------------------------------------------------------------- */

static void test_modules(void **state) {
    (void)state;
    const struct kern_shape s = {
        .hidden = 10, .heads = 6, .kv_heads = 2, .head_dim = 8, .intermediate = 30};
    const uint32_t in[] = {10, 10, 10, 48, 10, 10, 30}, out[] = {48, 16, 16, 10, 30, 30, 10};
    const char *const names[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                 "gate_proj", "up_proj", "down_proj"};
    for (uint32_t m = 0; m < KERN_MODULES; m++) {
        assert_int_equal(kern_module_in(&s, m), in[m]);
        assert_int_equal(kern_module_out(&s, m), out[m]);
        assert_string_equal(kern_module_name(m), names[m]);
    }
    assert_int_equal(kern_rank_padded(0), 0);
    assert_int_equal(kern_rank_padded(1), 8);
    assert_int_equal(kern_rank_padded(8), 8);
    assert_int_equal(kern_rank_padded(511), 512);
}

static void unpadded_rank(void *context) {
    (void)kern_matrix_end(2048, 0, *(uint32_t *)context, 64);
}

static void test_bad_ranks_crash(void **state) {
    (void)state;
    uint32_t ranks[] = {0, 12, 520};
    for (size_t i = 0; i < COUNT(ranks); i++) {
        assert_true(crashes(unpadded_rank, &ranks[i]));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),          cmocka_unit_test(test_places_at_random),
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_modules),
        cmocka_unit_test(test_bad_ranks_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
