/* cost.c - predicted time of a step: fixed + tokens × a + adapter pages × b.
 *
 * The coefficients are kept as the times of a full step and of reading the whole pool, so that the
 * three inputs lie in 0..1, and are learned by normalised least mean squares. */
#include <math.h>

#include "base/check.h"
#include "scheduler/sched_internal.h"

#define RATE 0.05     /* of the error that one step corrects */
#define OUTLIER 4.0   /* a step slower than this many predictions counts as this many */
#define LEAST_US 1e-3 /* coefficients stay positive */

void sched_cost_open(struct sched *s) {
    s->us_fixed = fmax(s->options.step_us_fixed, LEAST_US);
    s->us_tokens = fmax(s->options.step_us_row * s->options.step_tokens, LEAST_US);
    s->us_pages = fmax(s->options.load_us_page * s->options.pages, LEAST_US);
}

double sched_step_us(const struct sched *s, uint32_t tokens, uint32_t adapter_pages) {
    return s->us_fixed + s->us_tokens * tokens / s->options.step_tokens +
           s->us_pages * adapter_pages / s->options.pages;
}

void sched_learn(struct sched *s, uint32_t tokens, uint32_t adapter_pages, double us) {
    if (!isfinite(us) || us <= 0) {
        return; /* a clock that stood still teaches nothing */
    }
    double x = (double)tokens / s->options.step_tokens;
    double y = (double)adapter_pages / s->options.pages;
    double expected = sched_step_us(s, tokens, adapter_pages);
    double step = RATE * (fmin(us, OUTLIER * expected) - expected) / (1 + x * x + y * y);
    s->us_fixed = fmax(s->us_fixed + step, LEAST_US);
    s->us_tokens = fmax(s->us_tokens + step * x, LEAST_US);
    s->us_pages = fmax(s->us_pages + step * y, LEAST_US);
}
