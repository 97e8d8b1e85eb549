/* acks.h - which offsets may be committed: a pure state machine, events in, effects out.
 *
 * Invariant 1: the watermark of a partition passes an offset only after a delivered outcome names
 * its coordinates. Offsets received are tracked, never a range: compaction, transaction markers and
 * retention leave gaps. No clock, no thread, no I/O: the source thread owns it and a model drives
 * it in the tests.
 *
 * An assignment of a partition has an epoch; work of an older epoch has no effect. */
#ifndef LORRY_WORKER_ACKS_H
#define LORRY_WORKER_ACKS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct acks;

struct acks_options {
    uint32_t partitions_max; /* assigned at once */
    uint32_t received_max;   /* offsets received and not below the watermark, over all partitions */
};

NODISCARD enum err acks_open(struct acks **out, const struct acks_options *options);
void acks_close(struct acks *a);

/* A partition is ours: nothing of it is received yet; `next` is the first offset to come, or < 0 when
 * not known before the first record. `*slot` names it until it goes, `*epoch` is never given twice.
 * ERR_NO_SPACE: more than partitions_max. */
NODISCARD enum err acks_assign(struct acks *a, uint32_t topic, int32_t partition, int64_t next,
                               uint32_t *slot, uint32_t *epoch);
/* It goes. Nothing of this epoch counts any more. Before that, a revoked one may be committed. */
void acks_unassign(struct acks *a, uint32_t slot);
bool acks_find(const struct acks *a, uint32_t topic, int32_t partition, uint32_t *slot);

/* A record came. Offsets of a slot rise. A record below the watermark or seen before is refused:
 * false, and must not be worked on. ERR_NO_SPACE cannot happen while intake stops when
 * acks_full() says so. */
NODISCARD bool acks_receive(struct acks *a, uint32_t slot, int64_t offset);
/* A delivered outcome names it. Of an older epoch: no effect. Unknown offset: CHECK. */
void acks_deliver(struct acks *a, uint32_t slot, uint32_t epoch, int64_t offset);
bool acks_full(const struct acks *a);

struct acks_commit {
    uint32_t topic;
    int32_t partition;
    uint32_t slot;
    int64_t next; /* first offset that is not done: what Kafka's commit wants */
};

/* Whether the slot's watermark has moved since the last commit asked for. */
bool acks_commit_due(const struct acks *a, uint32_t slot, struct acks_commit *commit);
/* The commit was handed to the broker; a failure (ok = false) makes it due again. */
void acks_commit_sent(struct acks *a, uint32_t slot, int64_t next);
void acks_commit_ended(struct acks *a, uint32_t slot, uint32_t epoch, int64_t next, bool ok);

uint32_t acks_slots(const struct acks *a); /* slots are 0 .. count-1; some may be unassigned */
uint32_t acks_open_offsets(const struct acks *a); /* received, not delivered */
uint32_t acks_epoch(const struct acks *a, uint32_t slot); /* 0 = unassigned */

#endif
