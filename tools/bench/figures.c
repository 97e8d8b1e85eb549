/* What a run was worth: rates, times, and how much of the device's peaks its steps needed.
 *
 * "Needed" is the least that a step must move and compute: the weights once (the head where
 * anything is sampled), the KV of each sequence once and its new tokens' written, each distinct
 * adapter once; two operations a weight and token, four a head element and attended position. What
 * an implementation moves beyond that counts against it. */
#include <stdlib.h>
#include <string.h>

#include "tools/bench/bench.h"

static int by_value(const void *a, const void *b) {
    const double *x = a;
    const double *y = b;
    return *x < *y ? -1 : *x > *y;
}

struct bench_times bench_times_of(double *values, uint32_t count) {
    struct bench_times t = {.count = count};
    if (count == 0) {
        return t;
    }
    qsort(values, count, sizeof *values, by_value);
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += values[i];
    }
    t.p50 = values[(uint64_t)(count - 1) * 50 / 100] / 1e3;
    t.p90 = values[(uint64_t)(count - 1) * 90 / 100] / 1e3;
    t.p99 = values[(uint64_t)(count - 1) * 99 / 100] / 1e3;
    t.mean = sum / count / 1e3;
    return t;
}

/* ---- what steps need ---------------------------------------------------------------------- */

struct needs {                          /* of a model on a device */
    double layer_weights, head_weights; /* elements */
    double elem_bytes, kv_token_bytes, pair_flop, page_bytes;
};

static struct needs needs_of(const struct model_facts *model, const struct worker_plan *plan) {
    const struct kern_shape *s = &model->shape;
    struct needs n = {.head_weights = (double)s->vocab * s->hidden,
                      .elem_bytes = kern_dtype_bytes(plan->elem),
                      .pair_flop = 4.0 * s->layers * s->heads * s->head_dim,
                      .page_bytes = (double)plan->page_bytes};
    for (enum kern_module m = 0; m < KERN_MODULES; m++) {
        n.layer_weights += (double)s->layers * kern_module_in(s, m) * kern_module_out(s, m);
    }
    n.kv_token_bytes = 2.0 * s->layers * s->kv_heads * s->head_dim * n.elem_bytes;
    return n;
}

static double step_bytes(const struct needs *n, const struct engine_stepped *s) {
    double weights = n->layer_weights + (s->rows > 0 ? n->head_weights : 0);
    return weights * n->elem_bytes + ((double)s->kv_tokens + s->tokens) * n->kv_token_bytes +
           s->adapter_pages * n->page_bytes;
}

static double step_flop(const struct needs *n, const struct engine_stepped *s) {
    return 2.0 * s->tokens * n->layer_weights + 2.0 * s->rows * n->head_weights +
           (double)s->pairs * n->pair_flop;
}

/* ---- the parts ---------------------------------------------------------------------------- */

static void step_times(struct bench_figures *f, const struct worker_bench_report *r,
                       double *values) {
    for (int mixed = 0; mixed < 2; mixed++) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < r->step_count; i++) {
            if ((r->steps[i].prompt_tokens > 0) == mixed) {
                values[count++] = (double)r->steps[i].span.busy_us;
            }
        }
        *(mixed ? &f->mixed : &f->decode) = bench_times_of(values, count);
    }
}

static void host_times(struct bench_figures *f, const struct worker_bench_report *r,
                       double *values) {
    const struct {
        size_t offset;
        struct bench_times *to;
    } parts[] = {{offsetof(struct engine_stepped, plan_us), &f->plan},
                 {offsetof(struct engine_stepped, build_us), &f->build},
                 {offsetof(struct engine_stepped, launch_us), &f->launch},
                 {offsetof(struct engine_stepped, take_us), &f->take},
                 {offsetof(struct engine_stepped, wait_us), &f->wait}};
    for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
        for (uint32_t i = 0; i < r->step_count; i++) {
            uint32_t us = 0;
            memcpy(&us, (const char *)&r->steps[i] + parts[p].offset, sizeof us);
            values[i] = us;
        }
        *parts[p].to = bench_times_of(values, r->step_count);
    }
    f->host_ms = f->plan.mean + f->build.mean + f->launch.mean + f->take.mean;
}

static void job_times(struct bench_figures *f, const struct bench_jobs *jobs, double *values) {
    uint32_t begun = 0;
    for (uint32_t i = 0; i < jobs->job_count; i++) {
        if (jobs->jobs[i].sampled > 0) {
            values[begun++] = (double)(jobs->jobs[i].first_us - jobs->jobs[i].at_us);
        }
    }
    f->first_token = bench_times_of(values, begun);
    for (uint32_t i = 0; i < jobs->job_count; i++) {
        values[i] = (double)(jobs->jobs[i].end_us - jobs->jobs[i].at_us);
    }
    f->job = bench_times_of(values, jobs->job_count);
}

static void device_shares(struct bench_figures *f, const struct worker_bench_report *r,
                          const struct worker_bench_device *device, const struct needs *n) {
    double busy_us = 0;
    double idle_us = 0;
    double bytes = 0;
    double flop = 0;
    double limit_s = 0;
    for (uint32_t i = 0; i < r->step_count; i++) {
        const struct engine_stepped *s = &r->steps[i];
        double b = step_bytes(n, s) / device->peaks.copy_bytes_s;
        double c = step_flop(n, s) / device->peaks.gemm_flop_s;
        busy_us += (double)s->span.busy_us;
        idle_us += i > 0 ? (double)s->span.idle_us : 0; /* the first one's is the warm-up's end */
        bytes += step_bytes(n, s);
        flop += step_flop(n, s);
        limit_s += b > c ? b : c;
        uint32_t pages = s->pages_kv + s->pages_adapters;
        f->pages_peak = pages > f->pages_peak ? pages : f->pages_peak;
        f->running_peak = s->running > f->running_peak ? s->running : f->running_peak;
        f->merged_steps += s->merged;
        f->adapter_bytes_read += s->adapter_pages * (uint64_t)device->plan.page_bytes;
    }
    if (busy_us > 0) {
        f->busy = busy_us / (busy_us + idle_us);
        f->idle = idle_us / (busy_us + idle_us);
        f->bytes_s = bytes / busy_us * 1e6;
        f->flop_s = flop / busy_us * 1e6;
        f->bytes_share = f->bytes_s / device->peaks.copy_bytes_s;
        f->flop_share = f->flop_s / device->peaks.gemm_flop_s;
        f->limit_share = limit_s / busy_us * 1e6;
    }
}

void bench_figures_make(struct bench_figures *f, const struct worker_bench_report *r,
                        const struct bench_jobs *jobs, const struct worker_bench_device *device,
                        const struct model_facts *model) {
    struct needs n = needs_of(model, &device->plan);
    uint32_t room = r->step_count > jobs->job_count ? r->step_count : jobs->job_count;
    double *values = calloc((size_t)room + 1, sizeof *values);
    *f = (struct bench_figures){.seconds = r->seconds,
                                .input_tokens = r->input_tokens,
                                .output_tokens = r->output_tokens,
                                .jobs = jobs->job_count,
                                .failed = r->failed,
                                .steps = r->step_count,
                                .rows = r->rows,
                                .pages = r->pages,
                                .preemptions = r->preemptions,
                                .found_tokens = r->found_tokens,
                                .loads = r->loads,
                                .load_bytes = r->load_pages * device->plan.page_bytes,
                                .evictions = r->evictions,
                                .fetches = r->fetches};
    if (r->seconds > 0) {
        f->output_s = (double)r->output_tokens / r->seconds;
        f->total_s = (double)(r->input_tokens + r->output_tokens) / r->seconds;
    }
    device_shares(f, r, device, &n);
    if (values != NULL) { /* else these stay zero */
        step_times(f, r, values);
        host_times(f, r, values);
        job_times(f, jobs, values);
    }
    free(values);
}
