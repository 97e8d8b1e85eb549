#include "worker/acks.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define NO_ENTRY UINT32_MAX /* ends a list */

/* An offset received and not below the watermark. It lies in the queue of its slot, oldest first,
 * and in the hash table that finds it by (slot, offset) when its outcome is delivered. */
struct entry {
    int64_t offset;
    uint32_t slot;
    uint32_t next;        /* in the slot's queue, or in the free list */
    uint32_t bucket_next; /* in the hash table */
    bool done;
};

/* A partition while it is ours. Always: committed <= sent <= next <= last + 1. */
struct slot {
    uint32_t topic;
    int32_t partition;
    uint32_t epoch;      /* 0 = unassigned, and the rest means nothing */
    uint32_t head, tail; /* the queue; the head is not done */
    int64_t last;        /* greatest offset received, or what lies before the first to come */
    int64_t next;        /* the watermark: what a commit should say; -1 = not known yet */
    int64_t sent;        /* of the last commit that has not failed */
    int64_t committed;   /* of the last commit that the broker took */
};

struct acks {
    struct slot *slots;    /* [partitions_max] */
    uint32_t *order;       /* [order_count] assigned slots by (topic, partition) */
    struct entry *entries; /* [received_max] */
    uint32_t *buckets;     /* [bucket_mask + 1] */
    uint32_t partitions_max, received_max, bucket_mask;
    uint32_t slot_count;  /* slots ever assigned */
    uint32_t order_count; /* partitions assigned now */
    uint32_t entry_free;  /* list of free entries */
    uint32_t entry_count; /* in use */
    uint32_t open;        /* of them, not done */
    uint32_t epoch;       /* the last one given */
};

enum err acks_open(struct acks **out, const struct acks_options *options) {
    CHECK(options->partitions_max >= 1);
    CHECK(options->received_max >= 1);
    CHECK(options->received_max <= 1U << 30);
    enum err e = ERR_NO_MEMORY;
    struct acks *a = calloc(1, sizeof *a);
    if (a == NULL) {
        goto out;
    }
    uint32_t buckets = 1;
    while (buckets < options->received_max) {
        buckets *= 2;
    }
    a->bucket_mask = buckets - 1;
    a->partitions_max = options->partitions_max;
    a->received_max = options->received_max;
    a->slots = calloc(a->partitions_max, sizeof *a->slots);
    a->order = calloc(a->partitions_max, sizeof *a->order);
    a->entries = calloc(a->received_max, sizeof *a->entries);
    a->buckets = calloc(buckets, sizeof *a->buckets);
    if (a->slots == NULL || a->order == NULL || a->entries == NULL || a->buckets == NULL) {
        goto out;
    }
    for (uint32_t i = 0; i < buckets; i++) {
        a->buckets[i] = NO_ENTRY;
    }
    a->entry_free = NO_ENTRY;
    for (uint32_t i = a->received_max; i-- > 0;) {
        a->entries[i].next = a->entry_free;
        a->entry_free = i;
    }
    *out = a;
    a = NULL;
    e = ERR_OK;
out:
    acks_close(a);
    return e;
}

void acks_close(struct acks *a) {
    if (a == NULL) {
        return;
    }
    free(a->buckets);
    free(a->entries);
    free(a->order);
    free(a->slots);
    free(a);
}

/* ---- partitions -------------------------------------------------------------------------------
 */

/* The place of (topic, partition) in `order`: where it is, or where it would go. */
static uint32_t order_place(const struct acks *a, uint32_t topic, int32_t partition) {
    uint32_t low = 0;
    uint32_t high = a->order_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct slot *s = &a->slots[a->order[middle]];
        if (s->topic < topic || (s->topic == topic && s->partition < partition)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool order_has(const struct acks *a, uint32_t place, uint32_t topic, int32_t partition) {
    if (place == a->order_count) {
        return false;
    }
    const struct slot *s = &a->slots[a->order[place]];
    return s->topic == topic && s->partition == partition;
}

static struct slot *slot_assigned(const struct acks *a, uint32_t slot) {
    CHECK(slot < a->slot_count);
    CHECK(a->slots[slot].epoch != 0);
    return &a->slots[slot];
}

/* The slot if `epoch` is the one it has now; NULL: that assignment is over. */
static struct slot *slot_of_epoch(const struct acks *a, uint32_t slot, uint32_t epoch) {
    CHECK(slot < a->slot_count);
    CHECK(epoch >= 1);
    CHECK(epoch <= a->epoch);
    return a->slots[slot].epoch == epoch ? &a->slots[slot] : NULL;
}

enum err acks_assign(struct acks *a, uint32_t topic, int32_t partition, int64_t next,
                     uint32_t *slot, uint32_t *epoch) {
    uint32_t place = order_place(a, topic, partition);
    CHECK(!order_has(a, place, topic, partition)); /* it is ours already */
    if (a->order_count == a->partitions_max) {
        return ERR_NO_SPACE;
    }
    uint32_t index = 0;
    while (index < a->slot_count && a->slots[index].epoch != 0) {
        index++;
    }
    CHECK(index < a->partitions_max);
    if (index == a->slot_count) {
        a->slot_count += 1;
    }
    CHECK(a->epoch < UINT32_MAX);
    a->epoch += 1;
    int64_t start = next < 0 ? -1 : next;
    a->slots[index] = (struct slot){.topic = topic,
                                    .partition = partition,
                                    .epoch = a->epoch,
                                    .head = NO_ENTRY,
                                    .tail = NO_ENTRY,
                                    .last = start < 0 ? -1 : start - 1,
                                    .next = start,
                                    .sent = start,
                                    .committed = start};
    memmove(a->order + place + 1, a->order + place, (a->order_count - place) * sizeof *a->order);
    a->order[place] = index;
    a->order_count += 1;
    *slot = index;
    *epoch = a->epoch;
    return ERR_OK;
}

bool acks_find(const struct acks *a, uint32_t topic, int32_t partition, uint32_t *slot) {
    uint32_t place = order_place(a, topic, partition);
    if (!order_has(a, place, topic, partition)) {
        return false;
    }
    *slot = a->order[place];
    return true;
}

/* ---- offsets ----------------------------------------------------------------------------------
 */

static uint32_t *bucket_of(struct acks *a, uint32_t slot, int64_t offset) {
    uint64_t h = ((uint64_t)offset ^ ((uint64_t)slot << 40)) * 0x9e3779b97f4a7c15U;
    return &a->buckets[(uint32_t)(h >> 32) & a->bucket_mask];
}

/* Takes the oldest offset of a slot out of everything. */
static void head_remove(struct acks *a, uint32_t slot) {
    struct slot *s = &a->slots[slot];
    uint32_t index = s->head;
    struct entry *e = &a->entries[index];
    s->head = e->next;
    if (s->head == NO_ENTRY) {
        s->tail = NO_ENTRY;
    }
    uint32_t *link = bucket_of(a, slot, e->offset);
    while (*link != index) {
        CHECK(*link != NO_ENTRY);
        link = &a->entries[*link].bucket_next;
    }
    *link = e->bucket_next;
    a->open -= e->done ? 0 : 1;
    e->next = a->entry_free;
    a->entry_free = index;
    CHECK(a->entry_count > 0);
    a->entry_count -= 1;
}

void acks_unassign(struct acks *a, uint32_t slot) {
    struct slot *s = slot_assigned(a, slot);
    while (s->head != NO_ENTRY) {
        head_remove(a, slot);
    }
    uint32_t place = order_place(a, s->topic, s->partition);
    CHECK(order_has(a, place, s->topic, s->partition));
    a->order_count -= 1;
    memmove(a->order + place, a->order + place + 1, (a->order_count - place) * sizeof *a->order);
    s->epoch = 0;
}

bool acks_receive(struct acks *a, uint32_t slot, int64_t offset) {
    struct slot *s = slot_assigned(a, slot);
    CHECK(offset >= 0);
    CHECK(offset < INT64_MAX);
    if (offset <= s->last) {
        return false; /* offsets rise: it was seen, or lies below the start */
    }
    CHECK(a->entry_free != NO_ENTRY); /* the caller heeds acks_full() */
    uint32_t index = a->entry_free;
    struct entry *e = &a->entries[index];
    a->entry_free = e->next;
    uint32_t *bucket = bucket_of(a, slot, offset);
    *e = (struct entry){.offset = offset, .slot = slot, .next = NO_ENTRY, .bucket_next = *bucket};
    *bucket = index;
    *(s->tail == NO_ENTRY ? &s->head : &a->entries[s->tail].next) = index;
    s->tail = index;
    s->last = offset;
    a->entry_count += 1;
    a->open += 1;
    return true;
}

void acks_deliver(struct acks *a, uint32_t slot, uint32_t epoch, int64_t offset) {
    struct slot *s = slot_of_epoch(a, slot, epoch);
    if (s == NULL) {
        return;
    }
    uint32_t index = *bucket_of(a, slot, offset);
    while (index != NO_ENTRY &&
           (a->entries[index].offset != offset || a->entries[index].slot != slot)) {
        index = a->entries[index].bucket_next;
    }
    CHECK(index != NO_ENTRY); /* never received, or done long ago */
    CHECK(!a->entries[index].done);
    a->entries[index].done = true;
    a->open -= 1;
    while (s->head != NO_ENTRY && a->entries[s->head].done) {
        int64_t next = a->entries[s->head].offset + 1;
        CHECK(next > s->next); /* a watermark only rises */
        s->next = next;
        head_remove(a, slot);
    }
    CHECK(s->next <= s->last + 1);
}

bool acks_full(const struct acks *a) {
    return a->entry_count == a->received_max;
}

/* ---- commits ----------------------------------------------------------------------------------
 */

bool acks_commit_due(const struct acks *a, uint32_t slot, struct acks_commit *commit) {
    CHECK(slot < a->slot_count);
    const struct slot *s = &a->slots[slot];
    if (s->epoch == 0 || s->next <= s->sent) {
        return false;
    }
    *commit = (struct acks_commit){
        .topic = s->topic, .partition = s->partition, .slot = slot, .next = s->next};
    return true;
}

void acks_commit_sent(struct acks *a, uint32_t slot, int64_t next) {
    struct slot *s = slot_assigned(a, slot);
    CHECK(next <= s->next); /* invariant 1 */
    CHECK(next > s->sent);
    s->sent = next;
}

void acks_commit_ended(struct acks *a, uint32_t slot, uint32_t epoch, int64_t next, bool ok) {
    struct slot *s = slot_of_epoch(a, slot, epoch);
    if (s == NULL || next > s->next) {
        return;
    }
    if (ok) {
        s->committed = next > s->committed ? next : s->committed;
        s->sent = s->sent > s->committed ? s->sent : s->committed;
    } else if (next == s->sent) {
        s->sent = s->committed; /* due again; an earlier commit's failure is covered by this one */
    }
}

uint32_t acks_slots(const struct acks *a) {
    return a->slot_count;
}

uint32_t acks_open_offsets(const struct acks *a) {
    return a->open;
}

uint32_t acks_epoch(const struct acks *a, uint32_t slot) {
    CHECK(slot < a->slot_count);
    return a->slots[slot].epoch;
}
