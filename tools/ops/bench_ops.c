/* bench_ops - times each block of the device seam against its roofline, on any device.
 *
 * The figures of kernels/README.md come from here: `make bench-ops`. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "tools/ops/cases.h"
#include "tools/ops/report.h"
#include "tools/ops/shapes.h"

enum { LAYERS = 4, ROUNDS = 5, TARGET_US = 10000, NUMBER_MAX = 1 << 20 };

static const char help[] =
    "usage: bench_ops [options]\n\n"
    "Times each block of a step on a device with random weights.\n\n"
    "  --device KIND    cuda, cpu or auto (auto)\n"
    "  --shape NAME     the model's shape (llama-3.1-8b); --list names all\n"
    "  --dtype TYPE     bf16 or f16 (bf16)\n"
    "  --layers N       layers that are held and run (4, or all of a smaller model); those of a\n"
    "                   small model may fit in a GPU's cache: then its linears seem too fast\n"
    "  --lora           what adapters add, instead of the blocks alone\n"
    "  --case WORD      only batches whose name has WORD in it; all words if given again\n"
    "  --list           prints shapes and batches\n"
    "  --json FILE      the results as JSON too\n"
    "  --cache FOLDER   where a GPU keeps its choice of algorithms (nowhere)\n"
    "  --threads N      of the CPU (all)\n"
    "  --rounds N       a time is the median of so many (5)\n"
    "  --round-us N     each of about so much device time (10000)\n";

struct bench {
    struct ops_options options;
    float rope_freq[KERN_HEAD_DIM_MAX / 2];
    const char *device, *shape_name, *json_path;
    const char *words[OPS_WORDS_MAX];
    uint32_t word_count, model_layers;
    bool lora, list;
    struct kern_shape model; /* the shape with all its layers */
    struct ops_runner *runner;
    struct ops_report report;
    struct ops_lora mix;
};

/* ---- names -------------------------------------------------------------------------------- */

static bool wanted(const struct bench *b, const char *name) {
    for (uint32_t i = 0; i < b->word_count; i++) {
        if (strstr(name, b->words[i]) == NULL) {
            return false;
        }
    }
    return true;
}

/* "decode-64@1024 eight r16" into `room`, which is returned. */
static const char *lora_name(const struct ops_batch *batch, enum ops_mix mix, uint32_t rank,
                             char room[OPS_NAME_BYTES]) {
    char name[OPS_NAME_BYTES];
    int length = snprintf(room, OPS_NAME_BYTES, "%s %s r%u", ops_batch_name(batch, name),
                          ops_mix_name(mix), rank);
    CHECK(length > 0 && length < OPS_NAME_BYTES);
    return room;
}

/* The next mix and rank of a batch that are wanted; false: there are no more. */
struct lora_cursor {
    uint32_t mix, rank_index;
};

static bool lora_next(const struct bench *b, const struct ops_batch *batch, struct lora_cursor *at,
                      struct ops_lora *mix, char name[OPS_NAME_BYTES]) {
    for (; at->mix < OPS_MIXES; at->mix++, at->rank_index = 0) {
        uint32_t rank;
        while ((rank = ops_rank_at(at->rank_index)) != 0) {
            at->rank_index++;
            lora_name(batch, (enum ops_mix)at->mix, rank, name);
            if (ops_lora_mix(batch, (enum ops_mix)at->mix, rank, mix) && wanted(b, name)) {
                return true;
            }
        }
    }
    return false;
}

static bool batch_wanted(const struct bench *b, const struct ops_batch *batch,
                         struct ops_lora *mix) {
    char name[OPS_NAME_BYTES];
    if (!b->lora) {
        return wanted(b, ops_batch_name(batch, name));
    }
    struct lora_cursor at = {0};
    return lora_next(b, batch, &at, mix, name);
}

static void list_print(struct bench *b) {
    char name[OPS_NAME_BYTES];
    struct ops_batch batch;
    for (uint32_t i = 0; ops_shape_name(i) != NULL; i++) {
        (void)printf("shape %s\n", ops_shape_name(i));
    }
    for (uint32_t i = 0; ops_batch_at(i, b->lora, &batch); i++) {
        struct lora_cursor at = {0};
        if (!b->lora && wanted(b, ops_batch_name(&batch, name))) {
            (void)printf("%s\n", name);
        }
        while (b->lora && lora_next(b, &batch, &at, &b->mix, name)) {
            (void)printf("%s\n", name);
        }
    }
}

/* ---- batches ------------------------------------------------------------------------------ */

static struct ops_work work_of(const struct bench *b, const struct ops_batch *batch,
                               enum ops_block block) {
    return ops_work(&b->options.shape, ops_elem_bytes(b->runner), batch, block);
}

/* A block's share of a step of the whole model. */
static double times_in_step(const struct bench *b, enum ops_block block) {
    return ops_in_layer(block) ? b->model_layers : 1;
}

/* Every block of a batch without adapters; prints what `lines` asks for. */
static enum err blocks_measure(struct bench *b, const struct ops_batch *batch, const char *name,
                               bool lines, double us[OPS_BLOCKS], struct err_text *why) {
    enum err e = ops_prepare(b->runner, batch, NULL, OPS_GREEDY, why);
    for (int i = 0; i <= OPS_PASS && e == ERR_OK; i++) {
        enum ops_block block = (enum ops_block)i;
        struct ops_time time;
        if (block == OPS_PASS && !lines) {
            break;
        }
        e = ops_measure(b->runner, block, OPS_WHOLE, &time, why);
        if (e == ERR_OK && block < OPS_BLOCKS) {
            us[block] = time.us;
        }
        if (e == ERR_OK && lines) {
            struct ops_work work = work_of(b, batch, block);
            ops_report_block(&b->report, name, ops_block_name(block), &time, &work);
        }
    }
    return e == ERR_OK ? ops_check(b->runner, why) : e;
}

/* What else a row may ask of the sampler. */
static enum err samplers_measure(struct bench *b, const struct ops_batch *batch, const char *name,
                                 struct err_text *why) {
    static const struct {
        enum ops_sampling sampling;
        const char *name;
    } kinds[] = {{OPS_TOP_P_K, "sample top-p+k"}, {OPS_LOGPROBS, "sample logprobs"}};
    enum err e = ERR_OK;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0] && e == ERR_OK; i++) {
        struct ops_time time;
        e = ops_prepare(b->runner, batch, NULL, kinds[i].sampling, why);
        if (e == ERR_OK) {
            e = ops_measure(b->runner, OPS_SAMPLE, OPS_WHOLE, &time, why);
        }
        if (e == ERR_OK) {
            struct ops_work work = work_of(b, batch, OPS_SAMPLE);
            ops_report_block(&b->report, name, kinds[i].name, &time, &work);
        }
    }
    return e;
}

static struct ops_step step_of(const struct bench *b, const struct ops_batch *batch,
                               const double us[OPS_BLOCKS]) {
    struct ops_step step = {
        .layers = b->model_layers, .tokens = ops_tokens(batch), .samples = ops_samples(batch)};
    for (int i = 0; i < OPS_BLOCKS; i++) {
        struct ops_work work = work_of(b, batch, (enum ops_block)i);
        double times = times_in_step(b, (enum ops_block)i);
        step.us += times * us[i];
        step.floor_us += times * ops_floor_us(&work, ops_peaks(b->runner));
    }
    return step;
}

static enum err plain_run(struct bench *b, const struct ops_batch *batch, struct err_text *why) {
    char name[OPS_NAME_BYTES];
    double us[OPS_BLOCKS];
    ops_batch_name(batch, name);
    enum err e = blocks_measure(b, batch, name, true, us, why);
    if (e == ERR_OK) {
        e = samplers_measure(b, batch, name, why);
    }
    if (e == ERR_OK) {
        struct ops_step step = step_of(b, batch, us);
        ops_report_step(&b->report, name, &step);
    }
    return e;
}

/* ---- adapters ----------------------------------------------------------------------------- */

/* What the project asks of adapters in a step: of decode, 1.25 × the bytes of the distinct ones at
 * the device's rate, and 3% of the base step from 256 rows on, 8% below; of prefill, 4% up to rank
 * 16 and 7% above. */
static double extra_limit(const struct ops_step *step, uint32_t rank, bool decode) {
    if (!decode) {
        double loss = rank <= 16 ? 0.04 : 0.07; /* of the tokens in a time */
        return step->us * loss / (1 - loss);
    }
    return 1.25 * step->extra_floor_us + step->us * (step->tokens >= 256 ? 0.03 : 0.08);
}

/* b->mix over `batch`, whose blocks alone took base[]. */
static enum err mix_measure(struct bench *b, const struct ops_batch *batch, const char *name,
                            const double base[OPS_BLOCKS], struct err_text *why) {
    struct ops_step step = step_of(b, batch, base);
    const uint32_t rank = b->mix.rank, elem_bytes = ops_elem_bytes(b->runner);
    step.adapters = b->mix.adapters;
    enum err e = ops_prepare(b->runner, batch, &b->mix, OPS_GREEDY, why);
    for (int i = 0; i < OPS_SAMPLE && e == ERR_OK; i++) {
        enum ops_block block = (enum ops_block)i;
        struct ops_time time;
        if (block == OPS_ATTENTION) {
            continue; /* adapters do not touch it */
        }
        e = ops_measure(b->runner, block, OPS_EXTRA, &time, why);
        if (e != ERR_OK) {
            break;
        }
        struct ops_work work =
            ops_lora_work(&b->options.shape, elem_bytes, block, rank, step.adapters, step.tokens);
        double times = times_in_step(b, block);
        step.extra_us += times * time.us;
        step.extra_floor_us += times * ops_floor_us(&work, ops_peaks(b->runner));
        ops_report_lora(&b->report, name, ops_block_name(block), base[block], &time, &work);
    }
    if (e == ERR_OK) {
        step.extra_limit_us = extra_limit(&step, rank, batch->groups[0].tokens == 1);
        ops_report_step(&b->report, name, &step);
        e = ops_check(b->runner, why);
    }
    return e;
}

static enum err lora_run(struct bench *b, const struct ops_batch *batch, struct err_text *why) {
    char name[OPS_NAME_BYTES];
    double base[OPS_BLOCKS];
    enum err e = blocks_measure(b, batch, ops_batch_name(batch, name), false, base, why);
    struct lora_cursor at = {0};
    while (e == ERR_OK && lora_next(b, batch, &at, &b->mix, name)) {
        e = mix_measure(b, batch, name, base, why);
    }
    return e;
}

/* ---- the whole run ------------------------------------------------------------------------ */

/* What the batches that are wanted need. False: there are none. */
static bool limits_find(struct bench *b) {
    struct ops_options *o = &b->options;
    struct ops_batch batch;
    o->tokens = OPS_CHUNKS_MAX;
    for (uint32_t i = 0; ops_batch_at(i, b->lora, &batch); i++) {
        if (!batch_wanted(b, &batch, &b->mix)) {
            continue;
        }
        uint32_t tokens = ops_tokens(&batch);
        o->tokens = tokens > o->tokens ? tokens : o->tokens;
        for (uint32_t g = 0; g < OPS_GROUPS; g++) {
            uint32_t end = batch.groups[g].position + batch.groups[g].tokens;
            o->context = end > o->context ? end : o->context;
        }
    }
    o->rank = b->lora ? OPS_RANK_MAX : 0;
    return o->context > 0;
}

static enum err batches_run(struct bench *b, struct err_text *why) {
    struct ops_batch batch;
    enum err e = ERR_OK;
    for (uint32_t i = 0; e == ERR_OK && ops_batch_at(i, b->lora, &batch); i++) {
        if (batch_wanted(b, &batch, &b->mix)) {
            e = b->lora ? lora_run(b, &batch, why) : plain_run(b, &batch, why);
        }
        if (e != ERR_OK) {
            char name[OPS_NAME_BYTES];
            (void)fprintf(stderr, "bench_ops: in %s:\n", ops_batch_name(&batch, name));
        }
    }
    return e;
}

static enum err json_open(struct bench *b, struct err_text *why) {
    if (b->json_path == NULL) {
        return ERR_OK;
    }
    b->report.json = fopen(b->json_path, "we");
    return b->report.json != NULL
               ? ERR_OK
               : err_set(why, ERR_BAD_CONFIG, "cannot write %s: %s", b->json_path, strerror(errno));
}

static enum err bench_run(struct bench *b, struct err_text *why) {
    b->options.ops = kern_find(b->device, why);
    if (b->options.ops == NULL) {
        return ERR_BAD_CONFIG;
    }
    enum err e = json_open(b, why);
    if (e == ERR_OK) {
        e = ops_open(&b->runner, &b->options, why);
    }
    if (e != ERR_OK) {
        return e;
    }
    const char *const dtypes[] = {[KERN_F32] = "f32", [KERN_F16] = "f16", [KERN_BF16] = "bf16"};
    bool wide = ops_elem_bytes(b->runner) == sizeof(float);
    const struct ops_run run = {.device = b->options.ops->name,
                                .shape = b->shape_name,
                                .dtype = dtypes[wide ? KERN_F32 : b->options.shape.dtype],
                                .layers = b->options.shape.layers,
                                .model_layers = b->model_layers,
                                .page_count = ops_page_count(b->runner),
                                .rounds = b->options.rounds};
    b->report.peaks = *ops_peaks(b->runner);
    b->report.lora = b->lora;
    ops_report_begin(&b->report, &run);
    e = batches_run(b, why);
    return e == ERR_OK ? ops_report_end(&b->report, why) : e;
}

/* ---- the command line --------------------------------------------------------------------- */

static bool number(const char *text, uint32_t most, uint32_t *out) {
    char *end = NULL;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value == 0 || value > most) {
        (void)fprintf(stderr, "bench_ops: '%s' is no number from 1 to %u\n", text, most);
        return false;
    }
    *out = (uint32_t)value;
    return true;
}

static bool device_known(const char *kind) {
    return strcmp(kind, "cuda") == 0 || strcmp(kind, "cpu") == 0 || strcmp(kind, "auto") == 0;
}

enum {
    DEVICE,
    SHAPE,
    DTYPE,
    LAYER_COUNT,
    LORA,
    CASE,
    LIST,
    JSON,
    CACHE,
    THREADS,
    ROUND_COUNT,
    ROUND_US,
    HELP
};

struct given {
    const char *dtype;
    uint32_t layers;
};

static bool option_take(struct bench *b, struct given *given, int option) {
    switch (option) {
    case DEVICE:
        b->device = optarg;
        return device_known(optarg);
    case SHAPE:
        b->shape_name = optarg;
        return true;
    case DTYPE:
        given->dtype = optarg;
        return strcmp(optarg, "bf16") == 0 || strcmp(optarg, "f16") == 0;
    case LAYER_COUNT:
        return number(optarg, NUMBER_MAX, &given->layers);
    case LORA:
        b->lora = true;
        return true;
    case CASE:
        if (b->word_count == OPS_WORDS_MAX) {
            return false;
        }
        b->words[b->word_count++] = optarg;
        return true;
    case LIST:
        b->list = true;
        return true;
    case JSON:
        b->json_path = optarg;
        return true;
    case CACHE:
        b->options.cache_dir = optarg;
        return true;
    case THREADS:
        return number(optarg, NUMBER_MAX, &b->options.threads);
    case ROUND_COUNT:
        return number(optarg, OPS_ROUNDS_MAX, &b->options.rounds);
    case ROUND_US:
        return number(optarg, NUMBER_MAX, &b->options.target_us);
    default:
        return false;
    }
}

/* False: what was given makes no sense. */
static bool shape_take(struct bench *b, const struct given *given) {
    if (!ops_shape(b->shape_name, &b->model, b->rope_freq)) {
        (void)fprintf(stderr, "bench_ops: no shape is called %s; --list names all\n",
                      b->shape_name);
        return false;
    }
    b->model.dtype = strcmp(given->dtype, "f16") == 0 ? KERN_F16 : KERN_BF16;
    b->model_layers = b->model.layers;
    b->options.shape = b->model;
    if (given->layers < b->model.layers) {
        b->options.shape.layers = given->layers;
    }
    return true;
}

static int arguments_take(struct bench *b, int argc, char **argv) {
    static const struct option options[] = {
        {"device", required_argument, NULL, DEVICE},
        {"shape", required_argument, NULL, SHAPE},
        {"dtype", required_argument, NULL, DTYPE},
        {"layers", required_argument, NULL, LAYER_COUNT},
        {"lora", no_argument, NULL, LORA},
        {"case", required_argument, NULL, CASE},
        {"list", no_argument, NULL, LIST},
        {"json", required_argument, NULL, JSON},
        {"cache", required_argument, NULL, CACHE},
        {"threads", required_argument, NULL, THREADS},
        {"rounds", required_argument, NULL, ROUND_COUNT},
        {"round-us", required_argument, NULL, ROUND_US},
        {"help", no_argument, NULL, HELP},
        {0},
    };
    struct given given = {.dtype = "bf16", .layers = LAYERS};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == HELP) {
            (void)fputs(help, stdout);
            exit(EXIT_DONE);
        }
        if (!option_take(b, &given, option)) {
            (void)fputs(help, stderr);
            return EXIT_USAGE;
        }
    }
    if (optind < argc || !shape_take(b, &given)) {
        (void)fputs(optind < argc ? help : "", stderr);
        return EXIT_USAGE;
    }
    if (!limits_find(b)) {
        (void)fprintf(stderr, "bench_ops: no batch has that name; --list names all\n");
        return EXIT_USAGE;
    }
    return EXIT_DONE;
}

int main(int argc, char **argv) {
    static struct bench b;
    struct err_text why = {0};
    log_configure(LOG_WARN, NULL);
    (void)setvbuf(stdout, NULL, _IOLBF, 0); /* what was measured stands before a failure */
    b.device = "auto";
    b.shape_name = "llama-3.1-8b";
    b.options.rounds = ROUNDS;
    b.options.target_us = TARGET_US;
    int code = arguments_take(&b, argc, argv);
    if (code != EXIT_DONE) {
        return code;
    }
    if (b.list) {
        list_print(&b);
        return EXIT_DONE;
    }
    enum err e = bench_run(&b, &why);
    ops_close(b.runner);
    if (e != ERR_OK) {
        (void)fflush(stdout);
        (void)fprintf(stderr, "bench_ops: %s\n", why.message);
        return err_exit_code(e);
    }
    return EXIT_DONE;
}
