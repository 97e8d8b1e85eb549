/* test_part.c - OUT.part comes back as far as it is whole. */
#include "tests/unit/tools/test.h"

#include "tools/part.h"

static char topic[] = "results";
static const struct manifest manifest = {
    .batch_id = BATCH_ID, .results_topic = topic, .partition_count = 2};

static void value_of(struct wire_buffer *b, int line, uint32_t attempt, enum wire_encoding how) {
    char id[64];
    int bytes = snprintf(id, sizeof id, BATCH_ID "/%d", line);
    struct wire_final f = {.id = {id, (size_t)bytes},
                           .batch_id = {BATCH_ID, strlen(BATCH_ID)},
                           .attempt = attempt,
                           .status = WIRE_SUCCEEDED,
                           .text = {"h\xc3\xa9\n", 4},
                           .topic = {"t", 1},
                           .timing = {-1, -1, -1}};
    (void)snprintf(f.run, sizeof f.run, "%s", RUN_A);
    assert_int_equal(wire_final_encode(&f, how, b), ERR_OK);
}

static void add(struct part *p, int line, uint32_t attempt, enum wire_encoding how) {
    struct err_text why = {0};
    struct wire_buffer b = {0};
    value_of(&b, line, attempt, how);
    assert_int_equal(part_add(p, b.data, b.bytes, &why), ERR_OK);
    wire_buffer_deinit(&b);
}

/* Opens `out`'s part; gives how many finals it had, and the offsets. */
static uint32_t reopen(struct part *p, const struct manifest *m, int64_t offsets[2]) {
    struct err_text why = {0};
    struct finals f = {0};
    offsets[0] = 10;
    offsets[1] = 20;
    assert_int_equal(part_open(p, "out", m, &f, offsets, 2, &why), ERR_OK);
    uint32_t count = f.count;
    finals_deinit(&f);
    return count;
}

static void comes_back_as_far_as_it_is_whole(void **state) {
    static char text[1 << 14];
    (void)state;
    struct err_text why = {0};
    struct part p = {0};
    int64_t offsets[2];
    assert_int_equal(reopen(&p, &manifest, offsets), 0);
    assert_true(offsets[0] == 10 && offsets[1] == 20); /* where the batch began */
    add(&p, 0, 1, WIRE_JSON);
    add(&p, 1, 1, WIRE_MSGPACK);
    assert_int_equal(part_mark(&p, (int64_t[2]){12, 25}, 2, &why), ERR_OK);
    add(&p, 2, 1, WIRE_JSON); /* after the last offsets: read again, harmless */
    add(&p, 1, 2, WIRE_JSON);
    part_close(&p, false);

    assert_int_equal(reopen(&p, &manifest, offsets), 3);
    assert_true(offsets[0] == 12 && offsets[1] == 25);
    part_close(&p, false);

    size_t bytes = file_read("out.part", text, sizeof text);
    for (size_t cut = bytes - 1; cut > 0; cut -= cut > 40 ? 37 : 1) { /* torn anywhere */
        file_write("out.part", text, cut);
        assert_true(reopen(&p, &manifest, offsets) <= 3);
        part_close(&p, false);
        assert_true((offsets[0] == 12 && offsets[1] == 25) ||
                    (offsets[0] == 10 && offsets[1] == 20));
        uint32_t before = reopen(&p, &manifest, offsets);
        add(&p, 7, 1, WIRE_JSON); /* and what is appended then is whole again */
        part_close(&p, false);
        assert_int_equal(reopen(&p, &manifest, offsets), before + 1);
        part_close(&p, false);
    }
}

static void another_batch_is_overwritten(void **state) {
    (void)state;
    struct part p = {0};
    int64_t offsets[2];
    struct manifest other = manifest;
    memcpy(other.batch_id, RUN_B, sizeof RUN_B);
    assert_true(reopen(&p, &manifest, offsets) > 0);
    part_close(&p, false);
    assert_int_equal(reopen(&p, &other, offsets), 0);
    part_close(&p, false);
    assert_int_equal(reopen(&p, &manifest, offsets), 0);
    part_close(&p, true);
    assert_int_equal(access("out.part", F_OK), -1);
}

static void a_folder_that_is_not_there_is_told(void **state) {
    (void)state;
    struct err_text why = {0};
    struct part p = {0};
    struct finals f = {0};
    int64_t offsets[2] = {0};
    assert_int_equal(part_open(&p, "no/such", &manifest, &f, offsets, 2, &why), ERR_BAD_CONFIG);
    assert_non_null(strstr(why.message, "no/such.part"));
    part_close(&p, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_back_as_far_as_it_is_whole),
        cmocka_unit_test(another_batch_is_overwritten),
        cmocka_unit_test(a_folder_that_is_not_there_is_told),
    };
    return cmocka_run_group_tests(tests, scratch_enter, scratch_leave);
}
