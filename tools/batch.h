/* batch.h - what `submit` makes of a file's lines, and the manifest by which `collect` finds the
 * answers; no I/O but the manifest's file. */
#ifndef LORRY_TOOLS_BATCH_H
#define LORRY_TOOLS_BATCH_H

#include "tools/ids.h"
#include "wire/wire.h"

/* ---- lines to jobs ------------------------------------------------------------------------ */

enum {
    BATCH_OTHERS_MAX = 64, /* batch ids that jobs bring themselves */
    BATCH_LINE_BYTES_MAX = WIRE_JOB_BYTES_MAX,
};
#define BATCH_NO_LINE UINT64_MAX

/* Ids that are known so far. Zero it, then set `id`. */
struct batch {
    char id[WIRE_ULID_BYTES + 1];
    struct ids ids;    /* that jobs bring; tagged with their line */
    struct ids others; /* batch ids that jobs bring */
};
void batch_deinit(struct batch *b);

/* The record that a line becomes. */
struct batch_record {
    struct wire_job job; /* owned */
    const char *value;   /* the line itself, or the buffer's bytes */
    size_t bytes;
    struct wire_buffer buffer; /* owned */
};
void batch_record_deinit(struct batch_record *r); /* a zeroed one is fine */

/* Checks a line (a job of ours, or OpenAI's) and makes the record. A job that has `id` and
 * `batch_id` goes as it is; else `<batch id>/<line>` and the batch's id are set and the job is
 * encoded anew, without the fields that nobody knows (job.unknown_fields counts them).
 * line    its index in the file, from 0
 * Errors  those of wire_job_decode(); ERR_BAD_FIELD also of an id that an earlier line had;
 *         ERR_NO_MEMORY. *r needs its deinit either way. */
NODISCARD enum err batch_convert(struct batch *b, uint64_t line, const char *text, size_t bytes,
                                 const struct wire_options *options, struct batch_record *r,
                                 struct err_text *why);

/* The line in `<batch id>/<line>`; BATCH_NO_LINE: another id. */
uint64_t batch_line(const char *batch_id, const char *id, size_t bytes);

/* ---- the manifest ------------------------------------------------------------------------- */

enum { MANIFEST_BYTES_MAX = 16 << 20, MANIFEST_PARTITIONS_MAX = 100000 };

struct manifest {
    char batch_id[WIRE_ULID_BYTES + 1];
    char *other_batch_ids[BATCH_OTHERS_MAX]; /* owned */
    uint32_t other_count;
    uint32_t count; /* distinct ids that the broker has taken */
    bool complete;  /* false: submit is at it, or was cut off: count is of the lines before `lines`,
                       and jobs of later ones may have been taken, too */
    uint64_t lines; /* of the input, from the top, that are settled; for submit --resume */
    uint64_t input_bytes;        /* of the input file; 0 = not known */
    char *topic, *results_topic; /* owned */
    int64_t *offsets; /* owned; of results_topic by partition, before the first job was sent */
    uint32_t partition_count;
    int64_t submitted_ms; /* Unix time */
};
void manifest_deinit(struct manifest *m); /* a zeroed one is fine */

/* Errors  ERR_BAD_CONFIG. The file is replaced at once or not at all. */
NODISCARD enum err manifest_write(const struct manifest *m, const char *path, struct err_text *why);
/* Errors  ERR_BAD_CONFIG, naming file and field. *m needs no deinit then. */
NODISCARD enum err manifest_read(struct manifest *m, const char *path, struct err_text *why);

/* Whether a final with this batch id belongs to the batch. */
bool manifest_has(const struct manifest *m, struct wire_str batch_id);

#endif
