/* Which offsets may be committed: single cases, then 10^5 random histories of a simulated broker
 * and two workers (invariant 1). */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/crash.h"
#include "worker/acks.h"

static struct acks *acks_of(uint32_t partitions, uint32_t received) {
    struct acks *a = NULL;
    struct acks_options options = {.partitions_max = partitions, .received_max = received};
    assert_int_equal(acks_open(&a, &options), ERR_OK);
    return a;
}

/* What a commit should say, or -1 when none is due. */
static int64_t due(const struct acks *a, uint32_t slot) {
    struct acks_commit c = {.next = -5};
    if (!acks_commit_due(a, slot, &c)) {
        assert_int_equal(c.next, -5);
        return -1;
    }
    assert_int_equal(c.slot, slot);
    return c.next;
}

static void test_watermark_over_gaps(void **state) {
    (void)state;
    struct acks *a = acks_of(2, 16);
    uint32_t slot;
    uint32_t epoch;
    assert_int_equal(acks_assign(a, 3, 7, 100, &slot, &epoch), ERR_OK);
    assert_int_equal(acks_epoch(a, slot), epoch);
    assert_int_equal(due(a, slot), -1);
    const int64_t offsets[] = {102, 103, 110, 111, 200};
    for (int i = 0; i < 5; i++) {
        assert_true(acks_receive(a, slot, offsets[i]));
    }
    assert_int_equal(acks_open_offsets(a), 5);
    acks_deliver(a, slot, epoch, 103); /* out of order */
    acks_deliver(a, slot, epoch, 111);
    assert_int_equal(due(a, slot), -1);
    acks_deliver(a, slot, epoch, 102);
    struct acks_commit c;
    assert_true(acks_commit_due(a, slot, &c));
    assert_int_equal(c.topic, 3);
    assert_int_equal(c.partition, 7);
    assert_int_equal(c.next, 104); /* not 110: nothing is known of what lies between */
    acks_deliver(a, slot, epoch, 110);
    assert_int_equal(due(a, slot), 112);
    assert_int_equal(acks_open_offsets(a), 1);
    acks_deliver(a, slot, epoch, 200);
    assert_int_equal(due(a, slot), 201); /* never beyond what was received */
    assert_int_equal(acks_open_offsets(a), 0);
    acks_close(a);
    acks_close(NULL);
}

static void test_redelivery_is_refused(void **state) {
    (void)state;
    struct acks *a = acks_of(1, 8);
    uint32_t slot;
    uint32_t epoch;
    assert_int_equal(acks_assign(a, 0, 0, 10, &slot, &epoch), ERR_OK);
    assert_false(acks_receive(a, slot, 9)); /* below the start */
    assert_true(acks_receive(a, slot, 10));
    assert_false(acks_receive(a, slot, 10)); /* inside */
    assert_true(acks_receive(a, slot, 12));
    acks_deliver(a, slot, epoch, 10);
    assert_false(acks_receive(a, slot, 10)); /* below the watermark */
    acks_deliver(a, slot, epoch, 12);
    assert_false(acks_receive(a, slot, 12));
    assert_int_equal(acks_open_offsets(a), 0);
    assert_int_equal(due(a, slot), 13);
    acks_close(a);
}

static void test_unknown_start(void **state) {
    (void)state;
    struct acks *a = acks_of(1, 8);
    uint32_t slot;
    uint32_t epoch;
    assert_int_equal(acks_assign(a, 0, 0, -1001, &slot, &epoch), ERR_OK);
    assert_int_equal(due(a, slot), -1);
    assert_true(acks_receive(a, slot, 0));
    assert_true(acks_receive(a, slot, 5));
    assert_int_equal(due(a, slot), -1);
    acks_deliver(a, slot, epoch, 0);
    assert_int_equal(due(a, slot), 1);
    acks_close(a);
}

static void test_old_epoch_has_no_effect(void **state) {
    (void)state;
    struct acks *a = acks_of(2, 4);
    uint32_t slot;
    uint32_t again;
    uint32_t old;
    uint32_t new;
    assert_int_equal(acks_assign(a, 0, 0, 0, &slot, &old), ERR_OK);
    assert_true(acks_receive(a, slot, 0));
    assert_true(acks_receive(a, slot, 1));
    assert_true(acks_receive(a, slot, 2));
    acks_deliver(a, slot, old, 1);
    acks_unassign(a, slot);
    assert_int_equal(acks_epoch(a, slot), 0);
    assert_int_equal(acks_open_offsets(a), 0);
    assert_int_equal(due(a, slot), -1);
    acks_deliver(a, slot, old, 0); /* while unassigned */
    assert_int_equal(acks_assign(a, 0, 0, 0, &again, &new), ERR_OK);
    assert_int_equal(again, slot);
    assert_int_not_equal(new, old);
    assert_true(acks_receive(a, slot, 0)); /* room: what it had received is gone */
    assert_true(acks_receive(a, slot, 1));
    assert_true(acks_receive(a, slot, 2));
    assert_true(acks_receive(a, slot, 3));
    assert_true(acks_full(a));
    acks_deliver(a, slot, old, 0);
    acks_commit_ended(a, slot, old, 2, false);
    assert_int_equal(due(a, slot), -1);
    assert_int_equal(acks_open_offsets(a), 4);
    acks_deliver(a, slot, new, 0);
    assert_int_equal(due(a, slot), 1);
    acks_close(a);
}

static void test_full(void **state) {
    (void)state;
    struct acks *a = acks_of(2, 3);
    uint32_t x;
    uint32_t y;
    uint32_t ex;
    uint32_t ey;
    assert_int_equal(acks_assign(a, 0, 0, 0, &x, &ex), ERR_OK);
    assert_int_equal(acks_assign(a, 0, 1, 0, &y, &ey), ERR_OK);
    assert_true(acks_receive(a, x, 5));
    assert_true(acks_receive(a, x, 6));
    assert_false(acks_full(a));
    assert_true(acks_receive(a, y, 5)); /* the same offset of another partition */
    assert_true(acks_full(a));
    acks_deliver(a, x, ex, 6); /* done, but above one that is not */
    assert_true(acks_full(a));
    assert_int_equal(due(a, y), -1);
    acks_deliver(a, y, ey, 5);
    assert_false(acks_full(a));
    assert_int_equal(due(a, y), 6);
    assert_int_equal(due(a, x), -1);
    acks_close(a);
}

static void test_partitions_are_found(void **state) {
    (void)state;
    struct acks *a = acks_of(4, 1);
    const struct {
        uint32_t topic;
        int32_t partition;
    } at[4] = {{1, 5}, {0, 9}, {1, 0}, {0, 2}};
    uint32_t slots[4];
    uint32_t epoch;
    uint32_t slot;
    assert_int_equal(acks_slots(a), 0);
    for (int i = 0; i < 4; i++) {
        assert_false(acks_find(a, at[i].topic, at[i].partition, &slot));
        assert_int_equal(acks_assign(a, at[i].topic, at[i].partition, 0, &slots[i], &epoch),
                         ERR_OK);
    }
    assert_int_equal(acks_assign(a, 2, 0, 0, &slot, &epoch), ERR_NO_SPACE);
    assert_int_equal(acks_slots(a), 4);
    acks_unassign(a, slots[1]);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(acks_find(a, at[i].topic, at[i].partition, &slot), i != 1);
        assert_true(i == 1 || slot == slots[i]);
    }
    assert_int_equal(acks_assign(a, 2, 0, 0, &slot, &epoch), ERR_OK);
    assert_int_equal(slot, slots[1]);
    assert_true(acks_find(a, 2, 0, &slot));
    assert_false(acks_find(a, 2, 1, &slot));
    acks_close(a);
}

static void test_commits(void **state) {
    (void)state;
    struct acks *a = acks_of(1, 8);
    uint32_t slot;
    uint32_t epoch;
    assert_int_equal(acks_assign(a, 0, 0, 0, &slot, &epoch), ERR_OK);
    for (int64_t i = 0; i < 5; i++) {
        assert_true(acks_receive(a, slot, i));
    }
    acks_deliver(a, slot, epoch, 0);
    acks_commit_sent(a, slot, 1);
    assert_int_equal(due(a, slot), -1);
    acks_deliver(a, slot, epoch, 1);
    assert_int_equal(due(a, slot), 2);
    acks_commit_sent(a, slot, 2);
    acks_commit_ended(a, slot, epoch, 1, false); /* the later one covers it */
    assert_int_equal(due(a, slot), -1);
    acks_commit_ended(a, slot, epoch, 2, false);
    assert_int_equal(due(a, slot), 2);
    acks_commit_sent(a, slot, 2);
    acks_commit_ended(a, slot, epoch, 2, true);
    assert_int_equal(due(a, slot), -1);

    acks_deliver(a, slot, epoch, 2);
    acks_commit_sent(a, slot, 3);
    acks_deliver(a, slot, epoch, 3);
    acks_commit_sent(a, slot, 4);
    acks_commit_ended(a, slot, epoch, 4, false); /* ended in the other order */
    acks_commit_ended(a, slot, epoch, 3, true);
    assert_int_equal(due(a, slot), 4);
    acks_commit_ended(a, slot, epoch, 77, true); /* an older epoch's: we have not done so much */
    assert_int_equal(due(a, slot), 4);
    acks_commit_sent(a, slot, 4);
    acks_commit_ended(a, slot, epoch, 4, true);
    acks_commit_ended(a, slot, epoch, 3, true);
    acks_commit_ended(a, slot, epoch, 4, false); /* a late word cannot take back the broker's yes */
    assert_int_equal(due(a, slot), -1);
    acks_deliver(a, slot, epoch, 4);
    acks_commit_sent(a, slot, 5);
    acks_commit_ended(a, slot, epoch, 5, false);
    acks_commit_ended(a, slot, epoch, 5, true); /* nor can a late yes come too late */
    assert_int_equal(due(a, slot), -1);
    acks_close(a);
}

struct misuse {
    struct acks *a;
    uint32_t slot, epoch;
    int64_t offset;
};

static void deliver_it(void *context) {
    struct misuse *m = context;
    acks_deliver(m->a, m->slot, m->epoch, m->offset);
}

static void receive_it(void *context) {
    struct misuse *m = context;
    (void)!acks_receive(m->a, m->slot, m->offset);
}

static void commit_it(void *context) {
    struct misuse *m = context;
    acks_commit_sent(m->a, m->slot, m->offset);
}

static void assign_it(void *context) {
    struct misuse *m = context;
    (void)!acks_assign(m->a, 0, 0, 0, &m->slot, &m->epoch);
}

static void unassign_it(void *context) {
    struct misuse *m = context;
    acks_unassign(m->a, m->slot);
}

static void test_misuse_crashes(void **state) {
    (void)state;
    struct misuse m = {.a = acks_of(2, 2)};
    assert_int_equal(acks_assign(m.a, 0, 0, 0, &m.slot, &m.epoch), ERR_OK);
    assert_true(crashes(assign_it, &m)); /* ours already */
    assert_true(acks_receive(m.a, m.slot, 3));
    m.offset = 4;
    assert_true(crashes(deliver_it, &m)); /* never received */
    m.offset = 3;
    assert_false(crashes(deliver_it, &m));
    assert_true(acks_receive(m.a, m.slot, 5));
    m.offset = 6;
    assert_true(crashes(receive_it, &m)); /* full */
    m.offset = 5;
    acks_deliver(m.a, m.slot, m.epoch, 5);
    assert_true(crashes(deliver_it, &m)); /* twice */
    assert_true(crashes(commit_it, &m));  /* 3 is not done */
    acks_deliver(m.a, m.slot, m.epoch, 3);
    assert_true(crashes(deliver_it, &m)); /* long done */
    m.epoch++;
    assert_true(crashes(deliver_it, &m)); /* an epoch that was never given */
    acks_unassign(m.a, m.slot);
    assert_true(crashes(unassign_it, &m));
    assert_true(crashes(receive_it, &m));
    acks_close(m.a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watermark_over_gaps),
        cmocka_unit_test(test_redelivery_is_refused),
        cmocka_unit_test(test_unknown_start),
        cmocka_unit_test(test_old_epoch_has_no_effect),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_partitions_are_found),
        cmocka_unit_test(test_commits),
        cmocka_unit_test(test_misuse_crashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
