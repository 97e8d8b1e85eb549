/* batch.c - lines to jobs. */
#include "tools/batch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"

void batch_deinit(struct batch *b) {
    ids_deinit(&b->ids);
    ids_deinit(&b->others);
    *b = (struct batch){0};
}

void batch_record_deinit(struct batch_record *r) {
    wire_job_deinit(&r->job);
    wire_buffer_deinit(&r->buffer);
    *r = (struct batch_record){0};
}

/* Ids must differ, or the batch would never be complete: there is one final an id. */
static enum err remember(struct batch *b, uint64_t line, const struct wire_job *job,
                         struct err_text *why) {
    uint32_t index = 0;
    bool added = true;
    enum err e = ERR_OK;
    if (job->batch_id.data != NULL) {
        e = ids_add(&b->others, job->batch_id.data, job->batch_id.bytes, line, &index, &added);
        if (e == ERR_OK && index >= BATCH_OTHERS_MAX) {
            return err_set_field(why, ERR_BAD_FIELD, "batch_id",
                                 "batch_id: the file has more than %d; leave the field out",
                                 BATCH_OTHERS_MAX);
        }
    }
    if (e == ERR_OK && job->id.data != NULL) {
        e = ids_add(&b->ids, job->id.data, job->id.bytes, line, &index, &added);
        if (e == ERR_OK && !added) {
            return err_set_field(why, ERR_BAD_FIELD, "id", "id %.*s is line %" PRIu64 "'s already",
                                 (int)job->id.bytes, job->id.data, b->ids.items[index].tag + 1);
        }
    }
    return e == ERR_OK ? e : err_set(why, e, "no memory for the ids");
}

enum err batch_convert(struct batch *b, uint64_t line, const char *text, size_t bytes,
                       const struct wire_options *options, struct batch_record *r,
                       struct err_text *why) {
    CHECK(b->id[0] != '\0');
    *r = (struct batch_record){0};
    /* JSON whatever the first byte: a line can be nothing else */
    enum err e = wire_job_decode(&r->job, text, bytes, wire_content_type(WIRE_JSON), options, why);
    if (e == ERR_OK) {
        e = remember(b, line, &r->job, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    if (r->job.id.data != NULL && r->job.batch_id.data != NULL) {
        r->value = text;
        r->bytes = bytes;
        return ERR_OK;
    }
    char id[WIRE_ULID_BYTES + 24];
    int id_bytes = snprintf(id, sizeof id, "%s/%" PRIu64, b->id, line);
    struct wire_job job = r->job; /* a copy, as these strings live here */
    if (job.id.data == NULL) {
        job.id = (struct wire_str){id, (size_t)id_bytes};
    }
    if (job.batch_id.data == NULL) {
        job.batch_id = (struct wire_str){b->id, strlen(b->id)};
    }
    e = wire_job_encode(&job, WIRE_JSON, &r->buffer);
    if (e != ERR_OK) {
        return err_set(why, e, "no memory for the job");
    }
    r->value = r->buffer.data;
    r->bytes = r->buffer.bytes;
    return ERR_OK;
}

uint64_t batch_line(const char *batch_id, const char *id, size_t bytes) {
    size_t head = strlen(batch_id);
    if (bytes < head + 2 || memcmp(id, batch_id, head) != 0 || id[head] != '/') {
        return BATCH_NO_LINE;
    }
    const char *digits = id + head + 1;
    size_t count = bytes - head - 1;
    if (count > 18 || (count > 1 && digits[0] == '0')) { /* not how we write a number */
        return BATCH_NO_LINE;
    }
    uint64_t line = 0;
    for (size_t i = 0; i < count; i++) {
        if (digits[i] < '0' || digits[i] > '9') {
            return BATCH_NO_LINE;
        }
        line = line * 10 + (uint64_t)(digits[i] - '0');
    }
    return line;
}
