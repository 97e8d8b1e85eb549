#include "tools/ops/report.h"

#include <errno.h>
#include <math.h>
#include <string.h>

/* ---- JSON --------------------------------------------------------------------------------- */

/* Names are ours: none has a character that JSON escapes. */
static void json_result(struct ops_report *r, const char *kind, const char *name) {
    (void)fprintf(r->json, "%s\n  {\"kind\": \"%s\", \"batch\": \"%s\"", r->any ? "," : "", kind,
                  name);
    r->any = true;
}

static void json_number(const struct ops_report *r, const char *key, double value) {
    if (isfinite(value)) {
        (void)fprintf(r->json, ", \"%s\": %.6g", key, value);
    } else {
        (void)fprintf(r->json, ", \"%s\": null", key);
    }
}

static void json_times(const struct ops_report *r, const struct ops_time *t,
                       const struct ops_work *work) {
    json_number(r, "us", t->us);
    json_number(r, "low_us", t->low_us);
    json_number(r, "high_us", t->high_us);
    json_number(r, "calls", t->calls);
    json_number(r, "bytes", work->bytes);
    json_number(r, "flops", work->flops);
    json_number(r, "floor_us", ops_floor_us(work, &r->peaks));
    (void)fprintf(r->json, ", \"host_bound\": %s}", t->host_bound ? "true" : "false");
}

/* ---- lines -------------------------------------------------------------------------------- */

enum { NAME_WIDTH = 32 };

/* A time within the noise of 0 has no rates. */
static double rate(double amount, double us) {
    return us > 0 ? amount / us : NAN;
}

static void print_number(int width, int digits, double value) {
    if (isfinite(value) && value != 0) {
        (void)printf(" %*.*f", width, digits, value);
    } else {
        (void)printf(" %*s", width, "-");
    }
}

static void print_rates(const struct ops_report *r, const struct ops_time *t,
                        const struct ops_work *work) {
    print_number(9, 1, t->high_us - t->low_us);
    print_number(9, 2, work->bytes / 1e6);
    print_number(9, 2, work->flops / 1e9);
    print_number(8, 0, rate(work->bytes / 1e3, t->us));
    print_number(8, 1, rate(work->flops / 1e6, t->us));
    print_number(7, 1, 100 * rate(ops_floor_us(work, &r->peaks), t->us));
    (void)printf("%s\n", t->host_bound ? " *" : "");
}

void ops_report_begin(struct ops_report *r, const struct ops_run *run) {
    (void)printf("%s, %s in %s, %u of %u layers, %u pages; copies %.0f GB/s, products %.1f "
                 "TFLOP/s, pinned memory %.1f GB/s; medians of %u\n"
                 "share %%: of max(bytes / copies, FLOPs / products); spread: greatest less least "
                 "round, us\n"
                 "*: launching takes the host as long; a graph would be faster\n\n",
                 run->device, run->shape, run->dtype, run->layers, run->model_layers,
                 run->page_count, r->peaks.copy_bytes_s / 1e9, r->peaks.gemm_flop_s / 1e12,
                 r->peaks.pinned_bytes_s / 1e9, run->rounds);
    (void)printf("%-*s %-16s %10s", NAME_WIDTH, "batch", "block", r->lora ? "base us" : "us");
    (void)printf("%s %9s %9s %9s %8s %8s %7s\n", r->lora ? "   extra us" : "", "spread", "MB",
                 "GFLOP", "GB/s", "TFLOP/s", "share %");
    if (r->json == NULL) {
        return;
    }
    (void)fprintf(r->json,
                  "{\"device\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"layers\": %u, "
                  "\"model_layers\": %u, \"rounds\": %u",
                  run->device, run->shape, run->dtype, run->layers, run->model_layers, run->rounds);
    json_number(r, "copy_bytes_s", r->peaks.copy_bytes_s);
    json_number(r, "gemm_flop_s", r->peaks.gemm_flop_s);
    json_number(r, "pinned_bytes_s", r->peaks.pinned_bytes_s);
    (void)fprintf(r->json, ", \"results\": [");
}

void ops_report_block(struct ops_report *r, const char *name, const char *block,
                      const struct ops_time *time, const struct ops_work *work) {
    (void)printf("%-*s %-16s %10.1f", NAME_WIDTH, name, block, time->us);
    print_rates(r, time, work);
    if (r->json != NULL) {
        json_result(r, "block", name);
        (void)fprintf(r->json, ", \"block\": \"%s\"", block);
        json_times(r, time, work);
    }
}

void ops_report_lora(struct ops_report *r, const char *name, const char *block, double base_us,
                     const struct ops_time *extra, const struct ops_work *work) {
    (void)printf("%-*s %-16s %10.1f %10.1f", NAME_WIDTH, name, block, base_us, extra->us);
    print_rates(r, extra, work);
    if (r->json != NULL) {
        json_result(r, "lora", name);
        (void)fprintf(r->json, ", \"block\": \"%s\"", block);
        json_number(r, "base_us", base_us);
        json_times(r, extra, work);
    }
}

void ops_report_step(struct ops_report *r, const char *name, const struct ops_step *s) {
    (void)printf("%-*s step, %u layers: %.1f us, floor %.1f us, share %.1f%%, %.0f tokens/s",
                 NAME_WIDTH, name, s->layers, s->us, s->floor_us, 100 * rate(s->floor_us, s->us),
                 1e6 * rate(s->tokens, s->us));
    if (s->adapters > 0) {
        (void)printf("; %u adapters add %.1f us (%.2f%%, least %.1f us, target %.1f us)",
                     s->adapters, s->extra_us, 100 * rate(s->extra_us, s->us), s->extra_floor_us,
                     s->extra_limit_us);
    }
    (void)printf("\n\n");
    (void)fflush(stdout);
    if (r->json == NULL) {
        return;
    }
    json_result(r, s->adapters > 0 ? "lora_step" : "step", name);
    json_number(r, "layers", s->layers);
    json_number(r, "tokens", s->tokens);
    json_number(r, "samples", s->samples);
    json_number(r, "us", s->us);
    json_number(r, "floor_us", s->floor_us);
    if (s->adapters > 0) {
        json_number(r, "adapters", s->adapters);
        json_number(r, "extra_us", s->extra_us);
        json_number(r, "extra_floor_us", s->extra_floor_us);
        json_number(r, "extra_limit_us", s->extra_limit_us);
    }
    (void)fprintf(r->json, "}");
}

enum err ops_report_end(struct ops_report *r, struct err_text *why) {
    if (r->json == NULL) {
        return ERR_OK;
    }
    (void)fprintf(r->json, "\n]}\n");
    bool written = ferror(r->json) == 0;
    written = fclose(r->json) == 0 && written;
    r->json = NULL;
    return written ? ERR_OK
                   : err_set(why, ERR_BAD_CONFIG, "the JSON file could not be written: %s",
                             strerror(errno));
}
