/* fuzz_wire.c - any bytes into the decoders: no crash, and what decodes must survive a round trip.
 *
 * The first byte chooses: bits 0-1 job, job, frame, final; bit 2 strict; bit 3 the content type. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"
#include "tests/unit/wire/support.h"
#include "wire/wire.h"

static void demand(bool good, const char *what, const char *detail) {
    if (!good) {
        fprintf(stderr, "fuzz_wire: %s: %s\n", what, detail == NULL ? "" : detail);
        abort();
    }
}

/* An error must tell a person what is wrong. */
static void demand_reason(enum err e, const struct err_text *why) {
    bool known = e == ERR_TOO_LARGE || e == ERR_BAD_MESSAGE || e == ERR_BAD_VERSION ||
                 e == ERR_BAD_FIELD || e == ERR_UNSUPPORTED_FIELD;
    demand(known, "an error of another kind", err_name(e));
    demand(why->message[0] != '\0', "an error without a message", err_name(e));
    bool of_field = e == ERR_BAD_VERSION || e == ERR_BAD_FIELD || e == ERR_UNSUPPORTED_FIELD;
    demand(!of_field || why->field[0] != '\0', "an error without its field", why->message);
}

static void fuzz_job(const uint8_t *data, size_t bytes, unsigned choice) {
    struct wire_job job;
    struct err_text why = {0};
    const struct wire_options options = {.strict = (choice & 4) != 0, .model_name = "base"};
    const char *type = (choice & 8) != 0 ? "application/json; charset=utf-8" : NULL;
    enum err e = wire_job_decode(&job, data, bytes, type, &options, &why);
    if (e != ERR_OK) {
        demand_reason(e, &why);
        demand(job.id.data == NULL || wire_id_valid(job.id), "an id that is not valid",
               why.message);
        wire_job_deinit(&job);
        return;
    }
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_buffer out = {0};
        struct wire_job back;
        const struct wire_options strict = {.strict = true, .model_name = "base"};
        demand(wire_job_encode(&job, (enum wire_encoding)encoding, &out) == ERR_OK, "encode",
               "job");
        e = wire_job_decode(&back, out.data, out.bytes, NULL, &strict, &why);
        demand(e == ERR_OK, "decode what was encoded", why.message);
        demand(back.encoding == (enum wire_encoding)encoding, "encoding", "job");
        const char *field = support_job_differs(&job, &back);
        demand(field == NULL, "a job differs after a round trip", field);
        wire_job_deinit(&back);
        wire_buffer_deinit(&out);
    }
    wire_job_deinit(&job);
}

static void fuzz_frame(const uint8_t *data, size_t bytes) {
    struct wire_frame frame;
    struct err_text why = {0};
    enum err e = wire_frame_decode(&frame, data, bytes, &why);
    if (e != ERR_OK) {
        demand_reason(e, &why);
        wire_frame_deinit(&frame);
        return;
    }
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_buffer out = {0};
        struct wire_frame back;
        demand(wire_frame_encode(&frame, (enum wire_encoding)encoding, &out) == ERR_OK, "encode",
               "frame");
        e = wire_frame_decode(&back, out.data, out.bytes, &why);
        demand(e == ERR_OK, "decode what was encoded", why.message);
        const char *field = support_frame_differs(&frame, &back);
        demand(field == NULL, "a frame differs after a round trip", field);
        wire_frame_deinit(&back);
        wire_buffer_deinit(&out);
    }
    wire_frame_deinit(&frame);
}

static void fuzz_final(const uint8_t *data, size_t bytes) {
    struct wire_final final;
    struct err_text why = {0};
    enum err e = wire_final_decode(&final, data, bytes, &why);
    if (e != ERR_OK) {
        demand_reason(e, &why);
        wire_final_deinit(&final);
        return;
    }
    for (int encoding = WIRE_MSGPACK; encoding <= WIRE_JSON; encoding++) {
        struct wire_buffer out = {0};
        struct wire_final back;
        demand(wire_final_encode(&final, (enum wire_encoding)encoding, &out) == ERR_OK, "encode",
               "final");
        e = wire_final_decode(&back, out.data, out.bytes, &why);
        demand(e == ERR_OK, "decode what was encoded", why.message);
        const char *field = support_final_differs(&final, &back);
        demand(field == NULL, "a final differs after a round trip", field);
        wire_final_deinit(&back);
        out.bytes = 0;
        demand(wire_final_openai(&final, &out) == ERR_OK, "encode", "OpenAI line");
        demand(out.bytes > 0 && out.data[out.bytes - 1] == '\n', "newline", "OpenAI line");
        wire_buffer_deinit(&out);
    }
    wire_final_deinit(&final);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes == 0) {
        return 0;
    }
    unsigned choice = data[0];
    if ((choice & 3) < 2) {
        fuzz_job(data + 1, bytes - 1, choice);
    } else if ((choice & 3) == 2) {
        fuzz_frame(data + 1, bytes - 1);
    } else {
        fuzz_final(data + 1, bytes - 1);
    }
    return 0;
}
