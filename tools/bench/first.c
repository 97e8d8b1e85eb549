/* The first load of an adapter: PEFT folders made from a seed, in the page cache, and jobs that
 * name one each, at a distance; from the request to the first token, and what of that were the
 * files' way into the host store and the copy into pages. Once with files whose hash is not known
 * yet, then with known ones; then beside rows of the base that decode, whose steps are compared
 * with the same rows' alone. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "tools/bench/bench.h"
#include "tools/json.h"

enum {
    PATH_BYTES = 4096,
    HEADER_ALIGN = 8,     /* of a safetensors header */
    PERIOD_MS = 100,      /* from one adapter's job to the next one's */
    ROWS_START_MS = 1500, /* the base's rows have begun to decode by then, on a GPU */
    SETTLE_MS = 2500,     /* a hash is kept only of files that are some seconds old */
    PROMPT = 16,          /* tokens of an adapter's job */
    OUTPUT = 2,
    REMOVE_FILES = 16, /* open while the folder is removed */
};

/* ---- files -------------------------------------------------------------------------------- */

/* folder/name; mkdtemp() and ids keep it short. */
static void path_join(char out[PATH_BYTES], const char *folder, const char *name) {
    int bytes = snprintf(out, PATH_BYTES, "%s/%s", folder, name);
    CHECK(bytes > 0 && bytes < PATH_BYTES);
}

static enum err file_failed(const char *path, struct err_text *why) {
    return err_set(why, ERR_INTERNAL, "%s: %s", path, strerror(errno));
}

static enum err folder_make(const char *path, struct err_text *why) {
    return mkdir(path, 0700) == 0 ? ERR_OK : file_failed(path, why);
}

static enum err config_write(const char *folder, uint32_t rank, bool qkvo, struct err_text *why) {
    char path[PATH_BYTES];
    path_join(path, folder, "adapter_config.json");
    json_t *targets = json_array();
    for (enum kern_module m = 0; m <= (qkvo ? KERN_O : KERN_DOWN); m++) {
        (void)json_array_append_new(targets, json_string(kern_module_name(m)));
    }
    json_t *root = json_pack("{ss, sI, sI, so}", "peft_type", "LORA", "r", (json_int_t)rank,
                             "lora_alpha", (json_int_t)rank, "target_modules", targets);
    enum err e = json_dump_file(root, path, 0) == 0 ? ERR_OK : file_failed(path, why);
    json_decref(root);
    return e;
}

/* The header's entry of a matrix; moves *end behind it. */
static void header_put(json_t *header, const char *name, enum kern_dtype elem, uint32_t rows,
                       uint32_t columns, uint64_t *end) {
    static const char *const types[] = {
        [KERN_F32] = "F32", [KERN_F16] = "F16", [KERN_BF16] = "BF16"};
    uint64_t begin = *end;
    *end += (uint64_t)rows * columns * kern_dtype_bytes(elem);
    json_t *entry =
        json_pack("{ss, s[II], s[II]}", "dtype", types[elem], "shape", (json_int_t)rows,
                  (json_int_t)columns, "data_offsets", (json_int_t)begin, (json_int_t)*end);
    (void)json_object_set_new(header, name, entry);
}

static json_t *header_make(const struct bench_adapters *a, uint32_t rank, uint64_t *data_bytes) {
    const struct kern_shape *s = &a->model->shape;
    json_t *header = json_object();
    *data_bytes = 0;
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        for (enum kern_module m = 0; m <= (a->qkvo ? KERN_O : KERN_DOWN); m++) {
            for (uint32_t b = 0; b < 2; b++) {
                char name[2 * BENCH_NAME_BYTES];
                (void)snprintf(name, sizeof name,
                               "base_model.model.model.layers.%u.%s.%s.lora_%c.weight", layer,
                               m <= KERN_O ? "self_attn" : "mlp", kern_module_name(m),
                               b == 0 ? 'A' : 'B');
                header_put(header, name, a->elem, b == 0 ? rank : kern_module_out(s, m),
                           b == 0 ? kern_module_in(s, m) : rank, data_bytes);
            }
        }
    }
    return header;
}

/* The header, and data cut from the random values, at another place for each adapter. */
static enum err weights_write(const struct bench_adapters *a, const char *folder, uint32_t rank,
                              uint32_t number, struct err_text *why) {
    char path[PATH_BYTES];
    uint64_t left = 0;
    path_join(path, folder, "adapter_model.safetensors");
    json_t *root = header_make(a, rank, &left);
    char *header = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    FILE *file = fopen(path, "we");
    enum err e = ERR_NO_MEMORY;
    if (header != NULL && file != NULL) {
        uint64_t bytes = strlen(header);
        uint64_t padded = (bytes + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN;
        bool good = fwrite(&padded, sizeof padded, 1, file) == 1; /* little-endian, as we are */
        good = good && fprintf(file, "%s%*s", header, (int)(padded - bytes), "") >= 0;
        uint64_t values = (uint64_t)BENCH_VALUES * kern_dtype_bytes(a->elem);
        uint64_t at = (uint64_t)number * 4096 % values;
        while (good && left > 0) {
            uint64_t run = left < values - at ? left : values - at;
            good = fwrite((const char *)a->values + at, 1, run, file) == run;
            left -= run;
            at = 0;
        }
        e = good ? ERR_OK : ERR_INTERNAL;
    }
    if (file != NULL && fclose(file) != 0) {
        e = ERR_INTERNAL;
    }
    free(header);
    return e == ERR_OK ? e : file_failed(path, why);
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *at) {
    (void)s;
    (void)kind;
    (void)at;
    return remove(path);
}

struct folders {
    char root[PATH_BYTES], adapters[PATH_BYTES], state[PATH_BYTES];
};

static void folders_remove(const struct folders *f) {
    (void)nftw(f->root, remove_one, REMOVE_FILES, FTW_DEPTH | FTW_PHYS);
}

/* Makes all adapters of a case below $TMPDIR or /tmp. */
static enum err folders_make(struct folders *f, const struct bench_adapters *a,
                             const struct bench_case *c, struct err_text *why) {
    const char *tmp = getenv("TMPDIR");
    path_join(f->root, tmp != NULL ? tmp : "/tmp", "lorry-bench-XXXXXX");
    if (mkdtemp(f->root) == NULL) {
        return file_failed(f->root, why);
    }
    path_join(f->adapters, f->root, "adapters");
    path_join(f->state, f->root, "state");
    enum err e = folder_make(f->adapters, why);
    e = e == ERR_OK ? folder_make(f->state, why) : e;
    for (uint32_t i = 0; i < c->adapters && e == ERR_OK; i++) {
        char id[BENCH_NAME_BYTES];
        char folder[PATH_BYTES];
        uint32_t rank = c->ranks[i % c->rank_count];
        bench_adapter_id(id, c, i);
        path_join(folder, f->adapters, id);
        e = folder_make(folder, why);
        e = e == ERR_OK ? config_write(folder, rank, c->qkvo, why) : e;
        e = e == ERR_OK ? weights_write(a, folder, rank, i, why) : e;
    }
    if (e != ERR_OK) {
        folders_remove(f);
    }
    return e;
}

/* ---- runs --------------------------------------------------------------------------------- */

struct firsts {                   /* of a run */
    struct bench_times miss, hit; /* from the request to the first token */
    double fetch_ms, load_ms;     /* means */
    uint64_t fetches;
    struct bench_times step; /* of rows of the base alone */
};

struct first { /* what its runs share */
    struct worker_bench *bench;
    const struct bench_case *c;
    const struct folders *folders;
    const uint32_t *prompt; /* the longest */
    char (*ids)[BENCH_NAME_BYTES];
    struct worker_bench_job *jobs;
};

/* The rows of the base, if any, and then the adapters' jobs, each adapter's first and, for what its
 * time would be without a load, a second one. */
static uint32_t jobs_fill(const struct first *f, uint32_t rows, bool adapters, bool twice) {
    const struct bench_case *c = f->c;
    uint32_t count = 0;
    for (uint32_t i = 0; i < rows; i++) {
        f->jobs[count++] = (struct worker_bench_job){
            .prompt = f->prompt, .prompt_count = c->input.low, .output_count = c->output.low};
    }
    for (uint32_t i = 0; i < c->adapters && adapters; i++) {
        for (int64_t k = 0; k < (twice ? 2 : 1); k++) {
            int64_t at_ms = (rows > 0 ? ROWS_START_MS : 0) + (int64_t)i * PERIOD_MS;
            f->jobs[count++] =
                (struct worker_bench_job){.adapter = f->ids[i],
                                          .prompt = f->prompt,
                                          .prompt_count = PROMPT,
                                          .output_count = OUTPUT,
                                          .at_us = (at_ms + k * (PERIOD_MS / 2)) * 1000};
        }
    }
    return count;
}

static enum err run_one(const struct first *f, uint32_t rows, bool adapters, bool twice,
                        struct firsts *out, struct err_text *why) {
    struct worker_bench_job warm = {.prompt = f->prompt, .prompt_count = PROMPT, .output_count = 4};
    struct worker_bench_run run = {.jobs = f->jobs,
                                   .job_count = jobs_fill(f, rows, adapters, twice),
                                   .warm = &warm,
                                   .warm_count = 1,
                                   .rows = f->c->rows,
                                   .root = f->folders->adapters,
                                   .state_dir = f->folders->state};
    struct worker_bench_report r = {0};
    enum err e = worker_bench_run(f->bench, &run, &r, why);
    if (e == ERR_OK && r.failed > 0) {
        *why = r.failure;
        e = ERR_INTERNAL;
    }
    uint32_t room = run.job_count > r.step_count ? run.job_count : r.step_count;
    double *values = e == ERR_OK ? calloc((size_t)room + 1, sizeof *values) : NULL;
    if (values == NULL) {
        worker_bench_report_deinit(&r);
        return e != ERR_OK ? e : err_set(why, ERR_NO_MEMORY, "no memory for times");
    }
    *out = (struct firsts){.fetches = r.fetches};
    for (uint32_t k = 0; k < 2; k++) { /* adapters' first jobs, their second ones */
        uint32_t count = 0;
        for (uint32_t i = rows + k; i < run.job_count && (k == 0 || twice); i += twice ? 2 : 1) {
            values[count++] = (double)(f->jobs[i].first_us - f->jobs[i].at_us);
        }
        *(k == 0 ? &out->miss : &out->hit) = bench_times_of(values, count);
    }
    uint32_t steps = 0;
    for (uint32_t i = 0; i < r.step_count; i++) {
        if (r.steps[i].prompt_tokens == 0 && r.steps[i].segments == 0 && r.steps[i].rows == rows) {
            values[steps++] = (double)r.steps[i].span.busy_us;
        }
    }
    out->step = bench_times_of(values, steps);
    out->fetch_ms = r.fetches > 0 ? (double)r.fetch_us / (double)r.fetches / 1e3 : 0;
    out->load_ms = r.loads > 0 ? (double)r.load_us / (double)r.loads / 1e3 : 0;
    free(values);
    worker_bench_report_deinit(&r);
    return ERR_OK;
}

/* ---- report ------------------------------------------------------------------------------- */

enum { NEW, KNOWN, BESIDE, ALONE, RUNS };
static const char *const run_names[RUNS] = {"new", "known", "beside", "alone"};

static void report_text(FILE *out, const struct bench_case *c, const struct firsts runs[RUNS],
                        uint64_t bytes) {
    (void)fprintf(out, "\n%s: %u adapters of %.1f MB, one every %d ms\n", c->name, c->adapters,
                  (double)bytes / 1e6, PERIOD_MS);
    for (uint32_t i = NEW; i <= BESIDE; i++) {
        const struct firsts *f = &runs[i];
        (void)fprintf(out,
                      "  %-7s %2u fetches: files to store %7.2f ms, to pages %6.2f ms (means); "
                      "first token %7.2f p50 %7.2f p90",
                      run_names[i], (unsigned)f->fetches, f->fetch_ms, f->load_ms, f->miss.p50,
                      f->miss.p90);
        (void)(f->hit.count > 0 ? fprintf(out, ", resident %.2f p50\n", f->hit.p50)
                                : fprintf(out, "\n"));
    }
    const struct bench_times *alone = &runs[ALONE].step;
    const struct bench_times *beside = &runs[BESIDE].step;
    (void)fprintf(out,
                  "  steps of %u rows: p50 %.3f ms alone, %.3f while adapters come (%.3f times); "
                  "mean %.3f, %.3f (%.3f times); p99 %.3f, %.3f\n",
                  c->jobs, alone->p50, beside->p50, beside->p50 / alone->p50, alone->mean,
                  beside->mean, beside->mean / alone->mean, alone->p99, beside->p99);
}

static void report_json(FILE *out, const struct bench_case *c, const struct firsts runs[RUNS],
                        uint64_t bytes, const struct worker_bench_device *device,
                        const struct model_facts *model) {
    json_t *root = json_pack("{ss, ss, s{sI, sI, sI, sI}, s{ss}}", "case", c->name, "model",
                             model->name, "workload", "rows", (json_int_t)c->jobs, "adapters",
                             (json_int_t)c->adapters, "adapter_bytes", (json_int_t)bytes, "layers",
                             (json_int_t)c->layers, "device", "name", device->name);
    for (uint32_t i = 0; i < RUNS; i++) {
        const struct firsts *f = &runs[i];
        (void)json_object_set_new(
            root, run_names[i],
            json_pack("{sI, sf, sf, sf, sf, sf, sf, sf, sf}", "fetches", (json_int_t)f->fetches,
                      "fetch_ms", f->fetch_ms, "load_ms", f->load_ms, "first_token_ms", f->miss.p50,
                      "first_token_p90_ms", f->miss.p90, "resident_first_token_ms", f->hit.p50,
                      "step_ms", f->step.p50, "step_mean_ms", f->step.mean, "step_p99_ms",
                      f->step.p99));
    }
    json_line(out, root);
}

/* ---- the case ----------------------------------------------------------------------------- */

static enum err run_all(struct first *f, const struct bench_adapters *a, uint32_t *prompt,
                        struct firsts runs[RUNS], struct err_text *why) {
    const struct bench_case *c = f->c;
    uint32_t longest = c->input.low > PROMPT ? c->input.low : PROMPT;
    for (uint32_t i = 0; i < longest; i++) {
        prompt[i] = i % a->model->shape.vocab;
    }
    for (uint32_t i = 0; i < c->adapters; i++) {
        bench_adapter_id(f->ids[i], c, i);
    }
    clock_sleep_ms(SETTLE_MS);
    enum err e = run_one(f, 0, true, false, &runs[NEW], why);
    e = e == ERR_OK ? run_one(f, 0, true, true, &runs[KNOWN], why) : e;
    e = e == ERR_OK ? run_one(f, c->jobs, false, false, &runs[ALONE], why) : e;
    return e == ERR_OK ? run_one(f, c->jobs, true, false, &runs[BESIDE], why) : e;
}

enum err bench_first(struct worker_bench *bench, struct bench_adapters *a,
                     const struct bench_case *c, FILE *out, bool json, struct err_text *why) {
    struct folders folders;
    struct firsts runs[RUNS] = {0};
    uint32_t longest = c->input.low > PROMPT ? c->input.low : PROMPT;
    struct first f = {.bench = bench, .c = c, .folders = &folders};
    uint32_t *prompt = calloc(longest, sizeof *prompt);
    f.prompt = prompt;
    f.jobs = calloc(c->jobs + 2 * (size_t)c->adapters, sizeof *f.jobs);
    f.ids = calloc((size_t)c->adapters + 1, sizeof *f.ids);
    enum err e = bench_adapters_open(a);
    if (e != ERR_OK || prompt == NULL || f.jobs == NULL || f.ids == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for the jobs");
    } else {
        e = folders_make(&folders, a, c, why);
        if (e == ERR_OK) {
            e = run_all(&f, a, prompt, runs, why);
            folders_remove(&folders);
        }
    }
    if (e == ERR_OK) {
        uint64_t bytes = 0;
        json_decref(header_make(a, c->ranks[0], &bytes));
        if (json) {
            report_json(out, c, runs, bytes, worker_bench_device(bench), a->model);
        } else {
            report_text(out, c, runs, bytes);
        }
        (void)fflush(out);
    }
    bench_adapters_close(a);
    free(f.ids);
    free(f.jobs);
    free(prompt);
    return e;
}
