/* acks.h - which offsets may be committed: a pure state machine, events in, effects out.
 *
 * Invariant 1: the watermark of a partition passes an offset only after a delivered outcome names
 * its coordinates. Offsets received are tracked, never a range: compaction, transaction markers and
 * retention leave gaps. No clock, no thread, no I/O: the source thread owns it and a model drives
 * it in the tests.
 *
 * An assignment of a partition has an epoch; work of an older epoch has no effect. All memory is
 * taken by acks_open(); receive and deliver cost O(1), find and commits O(log partitions). */
#ifndef LORRY_WORKER_ACKS_H
#define LORRY_WORKER_ACKS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct acks;

struct acks_options {
    uint32_t partitions_max; /* assigned at once */
    /* Offsets received and not below the watermark, over all partitions: those of jobs inside, and
     * those done above one that is not. At most 2^30; some 32 bytes each. */
    uint32_t received_max;
};

/* ERR_NO_MEMORY. */
NODISCARD enum err acks_open(struct acks **out, const struct acks_options *options);
void acks_close(struct acks *a);

/* A partition is ours: nothing of it is received yet; `next` is the first offset to come, or < 0
 * when not known before the first record. `*slot` names it until it goes, `*epoch` is never given
 * twice. A partition that is ours already: CHECK.
 * Errors  ERR_NO_SPACE: more than partitions_max. */
NODISCARD enum err acks_assign(struct acks *a, uint32_t topic, int32_t partition, int64_t next,
                               uint32_t *slot, uint32_t *epoch);
/* It goes, with what it had received. Nothing of this epoch counts any more. Before that, a revoked
 * one may be committed. */
void acks_unassign(struct acks *a, uint32_t slot);
/* The slot of a partition that is ours. */
bool acks_find(const struct acks *a, uint32_t topic, int32_t partition, uint32_t *slot);

/* A record came. Offsets of a slot rise, with gaps. One below the start or not above the last was
 * seen before: it is refused (false) and must not be worked on. CHECKs that acks_full() was
 * heeded. */
NODISCARD bool acks_receive(struct acks *a, uint32_t slot, int64_t offset);
/* A delivered outcome names it. Of an older epoch: no effect. An offset that is unknown or was
 * delivered already: CHECK. */
void acks_deliver(struct acks *a, uint32_t slot, uint32_t epoch, int64_t offset);
/* No record may be received until an outcome of the oldest of some partition is delivered. */
bool acks_full(const struct acks *a);

struct acks_commit {
    uint32_t topic;
    int32_t partition;
    uint32_t slot;
    int64_t next; /* just above the last offset below which all received is done: never above one
                     that is not, nor above what was received. What Kafka's commit wants */
};

/* Whether the slot's watermark has moved since the last commit that was sent and has not failed.
 * `*commit` is written only when it is due. An unassigned slot has none. */
bool acks_commit_due(const struct acks *a, uint32_t slot, struct acks_commit *commit);
/* The commit of `next`, which was due, was handed to the broker. Several may be under way. */
void acks_commit_sent(struct acks *a, uint32_t slot, int64_t next);
/* It has ended; a failure makes it due again unless a later one was sent. Brokers' reports know no
 * epochs: one that names more than this epoch has done is an older one's, and without effect. */
void acks_commit_ended(struct acks *a, uint32_t slot, uint32_t epoch, int64_t next, bool ok);

/* Slots are 0 .. count - 1; some may be unassigned. The count never falls. */
uint32_t acks_slots(const struct acks *a);
uint32_t acks_open_offsets(const struct acks *a);         /* received, not delivered */
uint32_t acks_epoch(const struct acks *a, uint32_t slot); /* 0 = unassigned */

#endif
