#include <inttypes.h>

#include "tools/bench/bench.h"
#include "tools/json.h"

/* ---- text --------------------------------------------------------------------------------- */

#define GIB (1024.0 * 1024 * 1024)

void bench_report_device(FILE *out, const struct worker_bench_device *d,
                         const struct model_facts *model) {
    (void)fprintf(out,
                  "%s on %s: copies %.1f GB/s, GEMM %.3f TFLOP/s, pinned %.1f GB/s\n"
                  "weights %.2f GiB in %.2f s, step shapes in %.2f s; pool of %u pages of %u "
                  "tokens, %.2f GiB\n",
                  model->name, d->name, d->peaks.copy_bytes_s / 1e9, d->peaks.gemm_flop_s / 1e12,
                  d->peaks.pinned_bytes_s / 1e9, (double)d->plan.weight_bytes / GIB, d->weights_s,
                  d->warm_s, d->plan.page_count, d->plan.page_tokens,
                  (double)d->plan.pool_bytes / GIB);
}

static void print_times(FILE *out, const char *name, const struct bench_times *t) {
    if (t->count > 0) {
        (void)fprintf(out, "  %-14s %9.3f p50 %9.3f p90 %9.3f p99 %9.3f mean  (%u)\n", name, t->p50,
                      t->p90, t->p99, t->mean, t->count);
    }
}

static void print_adapters(FILE *out, const struct bench_case *c, const struct bench_jobs *jobs,
                           const struct bench_figures *f) {
    if (c->adapters == 0) {
        return;
    }
    (void)fprintf(out,
                  "  adapters       %u, %u used, %s; %" PRIu64 " loads (%.2f GiB), %" PRIu64
                  " evictions, %" PRIu64 " fetches; steps read %.1f GiB\n",
                  c->adapters, jobs->used, c->idle ? "idle" : bench_order_name(c->order), f->loads,
                  (double)f->load_bytes / GIB, f->evictions, f->fetches,
                  (double)f->adapter_bytes_read / GIB);
}

void bench_report_text(FILE *out, const struct bench_case *c, const struct bench_jobs *jobs,
                       const struct bench_figures *f) {
    (void)fprintf(out,
                  "\n%s: %.1f output tokens/s, %.1f tokens/s in all; %u jobs, %" PRIu64
                  " + %" PRIu64 " tokens, %.3f s\n",
                  c->name, f->output_s, f->total_s, f->jobs, f->input_tokens, f->output_tokens,
                  f->seconds);
    if (f->failed > 0) {
        (void)fprintf(out, "  FAILED         %u jobs\n", f->failed);
    }
    (void)fprintf(out,
                  "  device         busy %.2f%%, idle %.2f%%; needed %.1f GB/s (%.1f%%), %.3f "
                  "TFLOP/s (%.1f%%); %.1f%% of the limit by steps\n",
                  f->busy * 100, f->idle * 100, f->bytes_s / 1e9, f->bytes_share * 100,
                  f->flop_s / 1e12, f->flop_share * 100, f->limit_share * 100);
    print_adapters(out, c, jobs, f);
    if (c->shared > 0) {
        (void)fprintf(out, "  prefixes       %" PRIu64 " tokens of prompts found in pages\n",
                      f->found_tokens);
    }
    if (f->merged_steps > 0) {
        (void)fprintf(out, "  merged         %u of %u steps\n", f->merged_steps, f->steps);
    }
    (void)fprintf(
        out, "  rows, pages    %u of %u rows, %u of %u pages at most, %" PRIu64 " preemptions\n",
        f->running_peak, f->rows, f->pages_peak, f->pages, f->preemptions);
    (void)fprintf(out, "  in ms, over %u steps; the loop's own time a step is %.3f\n", f->steps,
                  f->host_ms);
    print_times(out, "decode step", &f->decode);
    print_times(out, "mixed step", &f->mixed);
    print_times(out, "loop: plan", &f->plan);
    print_times(out, "loop: build", &f->build);
    print_times(out, "loop: launch", &f->launch);
    print_times(out, "loop: take", &f->take);
    print_times(out, "loop: waits", &f->wait);
    print_times(out, "first token", &f->first_token);
    print_times(out, "job", &f->job);
}

/* ---- JSON --------------------------------------------------------------------------------- */

static json_t *times_json(const struct bench_times *t) {
    return json_pack("{sI, sf, sf, sf, sf}", "count", (json_int_t)t->count, "p50", t->p50, "p90",
                     t->p90, "p99", t->p99, "mean", t->mean);
}

static json_t *case_json(const struct bench_case *c) {
    json_t *ranks = json_array();
    for (uint32_t i = 0; i < c->rank_count && c->adapters > 0; i++) {
        (void)json_array_append_new(ranks, json_integer(c->ranks[i]));
    }
    return json_pack(
        "{sI, sI, s[II], s[II], sI, so, ss, ss, sb, sb, sI, sI, sI, sI, sI, sf, sI}", "layers",
        (json_int_t)c->layers, "jobs", (json_int_t)c->jobs, "input", (json_int_t)c->input.low,
        (json_int_t)c->input.high, "output", (json_int_t)c->output.low, (json_int_t)c->output.high,
        "adapters", (json_int_t)c->adapters, "ranks", ranks, "order", bench_order_name(c->order),
        "targets", c->qkvo ? "qkvo" : "all", "idle", (int)c->idle, "arrival", (int)c->arrival,
        "room", (json_int_t)c->room, "resident", (json_int_t)c->resident, "pool_tokens",
        (json_int_t)c->pool_tokens, "split", (json_int_t)c->split, "shared", (json_int_t)c->shared,
        "rate", c->rate, "seed", (json_int_t)c->seed);
}

static json_t *device_json(const struct worker_bench_device *d) {
    return json_pack("{ss, sf, sf, sf, sI, sI, sf, sf}", "name", d->name, "copy_bytes_s",
                     d->peaks.copy_bytes_s, "gemm_flop_s", d->peaks.gemm_flop_s, "pinned_bytes_s",
                     d->peaks.pinned_bytes_s, "pages", (json_int_t)d->plan.page_count, "page_bytes",
                     (json_int_t)d->plan.page_bytes, "weights_s", d->weights_s, "warm_s",
                     d->warm_s);
}

static json_t *loop_json(const struct bench_figures *f) {
    return json_pack("{sf, so, so, so, so, so}", "mean", f->host_ms, "plan", times_json(&f->plan),
                     "build", times_json(&f->build), "launch", times_json(&f->launch), "take",
                     times_json(&f->take), "wait", times_json(&f->wait));
}

void bench_report_json(FILE *out, const struct bench_case *c, const struct bench_jobs *jobs,
                       const struct bench_figures *f, const struct worker_bench_device *device,
                       const struct model_facts *model) {
    json_t *root = json_pack(
        "{ss, ss, so, so, sf, sf, sf, sI, sI, sI, sI, sI, sf, sf}", "case", c->name, "model",
        model->name, "workload", case_json(c), "device", device_json(device), "seconds", f->seconds,
        "output_tokens_s", f->output_s, "total_tokens_s", f->total_s, "input_tokens",
        (json_int_t)f->input_tokens, "output_tokens", (json_int_t)f->output_tokens, "failed",
        (json_int_t)f->failed, "rows", (json_int_t)f->rows, "steps", (json_int_t)f->steps, "busy",
        f->busy, "idle", f->idle);
    json_t *more = json_pack(
        "{sf, sf, sf, sf, sf, sI, sI, sI, sI, sI, sI, sI, sI, sI, sI, sI}", "bytes_s", f->bytes_s,
        "bytes_share", f->bytes_share, "flop_s", f->flop_s, "flop_share", f->flop_share,
        "limit_share", f->limit_share, "pages_peak", (json_int_t)f->pages_peak, "running_peak",
        (json_int_t)f->running_peak, "preemptions", (json_int_t)f->preemptions, "adapters_used",
        (json_int_t)jobs->used, "found_tokens", (json_int_t)f->found_tokens, "loads",
        (json_int_t)f->loads, "load_bytes", (json_int_t)f->load_bytes, "evictions",
        (json_int_t)f->evictions, "fetches", (json_int_t)f->fetches, "adapter_bytes_read",
        (json_int_t)f->adapter_bytes_read, "merged_steps", (json_int_t)f->merged_steps);
    json_t *times =
        json_pack("{so, so, so, so, so}", "decode_ms", times_json(&f->decode), "mixed_ms",
                  times_json(&f->mixed), "loop_ms", loop_json(f), "first_token_ms",
                  times_json(&f->first_token), "job_ms", times_json(&f->job));
    (void)json_object_update(root, more);
    (void)json_object_update(root, times);
    json_decref(more);
    json_decref(times);
    json_line(out, root);
}
