#include "worker/admit.h"

#include <float.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/ring.h"

enum { ADMIT_THREADS_MAX = 64, ADMIT_WAIT_MS = 200 };

struct admit {
    struct admit_options options;
    struct ring inbox;
    struct bell bells[ADMIT_THREADS_MAX];
    pthread_t threads[ADMIT_THREADS_MAX];
    uint32_t thread_count;
    _Atomic uint32_t next_bell;
    _Atomic bool closing;
};

/* ---- identity ----------------------------------------------------------------------------- */

/* Without a usable id a job is named by its coordinates. */
static void name_job(const struct admit_options *o, struct job *job) {
    if (job->wire.id.data != NULL) {
        CHECK(job->wire.id.bytes < sizeof job->id);
        memcpy(job->id, job->wire.id.data, job->wire.id.bytes);
        job->id[job->wire.id.bytes] = '\0';
        return;
    }
    const char *topic = o->ops->topic_name(o->source, job->at.topic);
    (void)snprintf(job->id, sizeof job->id, "%s%s/%" PRId32 "/%" PRId64, topic[0] == '@' ? "" : "@",
                   topic, job->at.partition, job->at.offset);
}

static enum err find_adapter(const struct admit_options *o, struct job *job) {
    if (job->wire.adapter.data == NULL) {
        return ERR_OK;
    }
    CHECK(job->wire.adapter.bytes < sizeof job->adapter);
    memcpy(job->adapter, job->wire.adapter.data, job->wire.adapter.bytes);
    job->adapter[job->wire.adapter.bytes] = '\0';
    if (o->config->adapters_dir[0] == '\0') {
        return err_set_field(&job->why, ERR_UNKNOWN_ADAPTER, "adapter",
                             "adapter %s: this worker has no adapter root (adapters.dir)",
                             job->adapter);
    }
    enum err e = model_adapter_stat(o->config->adapters_dir, job->adapter, &job->stamp, &job->why);
    if (e != ERR_OK && err_disposition(e) != ERR_REJECT) {
        memset(&job->stamp, 0, sizeof job->stamp); /* not known now: the loaders will tell */
        job->why = (struct err_text){0};
        return ERR_OK;
    }
    if (e != ERR_OK && job->why.field[0] == '\0') {
        (void)snprintf(job->why.field, sizeof job->why.field, "adapter");
    }
    return e;
}

/* ---- tokens ------------------------------------------------------------------------------- */

static enum err take_tokens(const struct admit_options *o, struct job *job) {
    size_t count = job->wire.token_count;
    if (count >= o->model->shape.positions) {
        return err_set_field(&job->why, ERR_PROMPT_TOO_LONG, "tokens",
                             "the prompt has %zu tokens, the context %u", count,
                             o->model->shape.positions);
    }
    for (size_t i = 0; i < count; i++) {
        if (job->wire.tokens[i] >= o->model->shape.vocab) {
            return err_set_field(&job->why, ERR_BAD_FIELD, "tokens",
                                 "token %zu is %u, the vocabulary ends at %u", i,
                                 job->wire.tokens[i], o->model->shape.vocab - 1);
        }
    }
    CHECK(count > 0); /* wire/ refuses an empty prompt */
    job->prompt = malloc(count * sizeof *job->prompt);
    if (job->prompt == NULL) {
        return ERR_NO_MEMORY;
    }
    memcpy(job->prompt, job->wire.tokens, count * sizeof *job->prompt);
    job->prompt_count = (uint32_t)count;
    return ERR_OK;
}

static enum err encode(const struct admit_options *o, struct job *job, const char *utf8,
                       size_t bytes, bool specials, const char *field) {
    size_t room = o->model->shape.positions;
    room = bytes + 16 < room ? bytes + 16 : room;
    uint32_t *tokens = malloc(room * sizeof *tokens);
    if (tokens == NULL) {
        return ERR_NO_MEMORY;
    }
    size_t count = 0;
    enum err e = text_encode(o->text, utf8, bytes, specials, tokens, room, &count, &job->why);
    if (e == ERR_NO_SPACE && count < o->model->shape.positions) {
        /* Rare: a normalizer made several characters of one. */
        free(tokens);
        room = count;
        tokens = malloc(room * sizeof *tokens);
        if (tokens == NULL) {
            return ERR_NO_MEMORY;
        }
        job->why = (struct err_text){0};
        e = text_encode(o->text, utf8, bytes, specials, tokens, room, &count, &job->why);
    }
    if (e == ERR_NO_SPACE || (e == ERR_OK && count >= o->model->shape.positions)) {
        e = err_set_field(&job->why, ERR_PROMPT_TOO_LONG, field,
                          "the prompt has %zu tokens, the context %u", count,
                          o->model->shape.positions);
    } else if (e == ERR_OK && count == 0) {
        e = err_set_field(&job->why, ERR_BAD_FIELD, field, "the prompt has no tokens");
    }
    for (size_t i = 0; e == ERR_OK && i < count; i++) {
        if (tokens[i] >= o->model->shape.vocab) { /* a tokenizer that is not this model's */
            e = err_set_field(&job->why, ERR_BAD_FIELD, field,
                              "token %zu is %u, the model's vocabulary ends at %u", i, tokens[i],
                              o->model->shape.vocab - 1);
        }
    }
    if (e != ERR_OK) {
        free(tokens);
        return e;
    }
    CHECK(count > 0);
    uint32_t *fitted = realloc(tokens, count * sizeof *tokens);
    job->prompt = fitted != NULL ? fitted : tokens;
    job->prompt_count = (uint32_t)count;
    return ERR_OK;
}

static enum err encode_messages(const struct admit_options *o, struct job *job) {
    if (!text_has_chat_template(o->text)) {
        return err_set_field(&job->why, ERR_UNSUPPORTED_FIELD, "messages",
                             "the model has no chat template");
    }
    struct text_message *messages = calloc(job->wire.message_count, sizeof *messages);
    if (messages == NULL) {
        return ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < job->wire.message_count; i++) {
        const struct wire_message *m = &job->wire.messages[i];
        messages[i] = (struct text_message){.role = m->role.data,
                                            .role_bytes = m->role.bytes,
                                            .content = m->content.data,
                                            .content_bytes = m->content.bytes};
    }
    char *rendered = NULL;
    size_t bytes = 0;
    enum err e =
        text_render_chat(o->text, messages, job->wire.message_count, &rendered, &bytes, &job->why);
    if (e == ERR_OK) {
        e = encode(o, job, rendered, bytes, false, "messages");
        text_release(rendered);
    }
    free(messages);
    return e;
}

static enum err tokenise(const struct admit_options *o, struct job *job) {
    switch (job->wire.input) {
    case WIRE_TOKENS:
        return take_tokens(o, job);
    case WIRE_MESSAGES:
        return encode_messages(o, job);
    case WIRE_PROMPT:
        break;
    }
    return encode(o, job, job->wire.prompt.data, job->wire.prompt.bytes, true, "prompt");
}

/* ---- parameters --------------------------------------------------------------------------- */

/* The seed of a job that brings none: the same job gives the same text wherever it runs. */
static uint64_t seed_of(const struct job *job) {
    return hash_add(hash_bytes(job->id, strlen(job->id)), job->wire.generation);
}

static enum err stop_tokens(const struct admit_options *o, struct job *job) {
    struct kern_slot_set *s = &job->sampling;
    for (uint32_t i = 0; !job->wire.ignore_eos && i < o->model->eos_count; i++) {
        s->stop[s->stop_count++] = o->model->eos[i];
    }
    for (size_t i = 0; i < job->wire.stop_token_count; i++) {
        if (job->wire.stop_token_ids[i] >= o->model->shape.vocab) {
            return err_set_field(&job->why, ERR_BAD_FIELD, "stop_token_ids",
                                 "token %u is not in the vocabulary, which ends at %u",
                                 job->wire.stop_token_ids[i], o->model->shape.vocab - 1);
        }
        CHECK(s->stop_count < KERN_STOP_TOKENS_MAX);
        s->stop[s->stop_count++] = job->wire.stop_token_ids[i];
    }
    return ERR_OK;
}
_Static_assert((int)MODEL_EOS_MAX + (int)WIRE_STOP_TOKENS_MAX <= (int)KERN_STOP_TOKENS_MAX,
               "a slot has room for the model's and the job's stop tokens");

/* A finite number above 0 as an f32 that is one, too. */
static float positive(double value) {
    return value > FLT_MAX ? FLT_MAX : value < FLT_MIN ? FLT_MIN : (float)value;
}

static void penalties(const struct admit_options *o, struct job *job) {
    const struct wire_job *w = &job->wire;
    struct kern_slot_set *s = &job->sampling;
    s->prompt_tokens = job->prompt_count;
    s->repetition_penalty = w->repetition_penalty.given ? positive(w->repetition_penalty.value)
                                                        : o->model->repetition_penalty;
    s->presence_penalty = w->presence_penalty.given ? (float)w->presence_penalty.value : 0;
    s->frequency_penalty = w->frequency_penalty.given ? (float)w->frequency_penalty.value : 0;
}

static void logprobs(const struct admit_options *o, struct job *job) {
    struct kern_slot_set *s = &job->sampling;
    uint32_t vocab = o->model->shape.vocab;
    uint32_t count = job->wire.logprobs.given ? (uint32_t)job->wire.logprobs.value : 0;
    s->logprobs = job->wire.logprobs.given;
    s->top_logprobs = count < vocab ? count : vocab;
}
_Static_assert((int)WIRE_LOGPROBS_MAX <= (int)KERN_LOGPROBS_MAX,
               "a slot can give as many alternatives as a job may ask for");

static enum err parameters(const struct admit_options *o, struct job *job) {
    const struct wire_job *w = &job->wire;
    struct kern_slot_set *s = &job->sampling;
    s->temperature = o->model->temperature;
    if (w->temperature.given) {
        s->temperature = w->temperature.value == 0 ? 0 : positive(w->temperature.value);
    }
    s->min_p = w->min_p.given ? (float)w->min_p.value : o->model->min_p;
    s->top_p = w->top_p.given ? (float)w->top_p.value : o->model->top_p;
    s->top_k =
        w->top_k.given ? (uint32_t)(w->top_k.value > 0 ? w->top_k.value : 0) : o->model->top_k;
    s->seed = w->seed.given ? (uint64_t)w->seed.value : seed_of(job);
    penalties(o, job);
    logprobs(o, job);
    job->stream = w->stream.given ? w->stream.value != 0 : o->config->frames_default;
    uint32_t room = o->model->shape.positions - job->prompt_count;
    job->output_max = room;
    if (w->max_tokens.given && w->max_tokens.value < (int64_t)room) {
        job->output_max = (uint32_t)w->max_tokens.value;
    }
    CHECK(job->output_max >= 1);
    return stop_tokens(o, job);
}

static void deadline(struct job *job) {
    int64_t from_ms = job->record->timestamp_ms >= 0 ? job->record->timestamp_ms : job->received_ms;
    if (job->wire.deadline_ms.given) {
        job->deadline_ms = job->wire.deadline_ms.value;
    } else if (job->wire.ttl_ms.given) {
        job->deadline_ms = from_ms + job->wire.ttl_ms.value;
    }
}

void admit_job(const struct admit_options *o, struct job *job) {
    const struct wire_options wire = {.strict = o->config->wire_strict,
                                      .model_name = o->model_name};
    const char *type = job->record->content_type[0] != '\0' ? job->record->content_type : NULL;
    enum err e = wire_job_decode(&job->wire, job->record->value, job->record->value_bytes, type,
                                 &wire, &job->why);
    name_job(o, job);
    metrics_add(o->metrics, METRIC_UNKNOWN_FIELDS, job->wire.unknown_fields);
    if (e == ERR_OK) {
        e = find_adapter(o, job);
    }
    bool known = e == ERR_OK && job->adapter[0] != '\0'; /* made-up ids get no label */
    job->metrics_adapter = metrics_adapter(o->metrics, known ? job->adapter : NULL);
    if (e == ERR_OK) {
        deadline(job);
        e = tokenise(o, job);
    }
    if (e == ERR_OK) {
        e = parameters(o, job);
    }
    job->error = e;
    job->dead_letter = err_disposition(e) == ERR_REJECT;
}

/* ---- threads ------------------------------------------------------------------------------ */

static void *admit_main(void *argument) {
    struct admit *a = argument;
    struct bell *bell = &a->bells[atomic_fetch_add(&a->next_bell, 1)];
    for (;;) {
        struct job *job = ring_pop(&a->inbox);
        if (job != NULL) {
            admit_job(&a->options, job);
            a->options.admitted(a->options.context, job);
        } else if (atomic_load(&a->closing)) {
            return NULL;
        } else {
            (void)bell_wait(bell, ADMIT_WAIT_MS);
        }
    }
}

enum err admit_open(struct admit **out, const struct admit_options *options) {
    struct admit *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return ERR_NO_MEMORY;
    }
    a->options = *options;
    uint32_t threads = (uint32_t)options->config->admit_threads;
    CHECK(threads <= ADMIT_THREADS_MAX);
    enum err e = ring_init(&a->inbox, options->jobs_max);
    for (uint32_t i = 0; i < threads; i++) {
        bell_init(&a->bells[i]);
    }
    for (uint32_t i = 0; e == ERR_OK && i < threads; i++) {
        if (pthread_create(&a->threads[i], NULL, admit_main, a) != 0) {
            e = ERR_NO_MEMORY;
        } else {
            a->thread_count++;
        }
    }
    if (e != ERR_OK) {
        admit_close(a);
        return e;
    }
    *out = a;
    return ERR_OK;
}

void admit_close(struct admit *a) {
    if (a == NULL) {
        return;
    }
    atomic_store(&a->closing, true);
    for (uint32_t i = 0; i < a->thread_count; i++) {
        bell_ring(&a->bells[i]);
        (void)pthread_join(a->threads[i], NULL);
    }
    ring_deinit(&a->inbox);
    free(a);
}

void admit_give(struct admit *a, struct job *job) {
    CHECK(ring_push(&a->inbox, job)); /* a cell for every job there is */
    for (uint32_t i = 0; i < a->thread_count; i++) {
        bell_ring(&a->bells[i]);
    }
}
