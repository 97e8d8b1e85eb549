/* cost.c - predicted time of a step: fixed + tokens × a + adapter pages × b.
 *
 * Beforehand the three parts follow from the device and the model (struct sched_options): weights
 * and pages over the memory's bandwidth, operations over their rate. Together they may be off by
 * any factor, while their proportions are mostly right to a factor of two. So what is learned is a
 * factor of each part. Let z be the parts' shares of the step's time by the priors (they sum to 1),
 * and y the measured time over that time. Then y ≈ g · z, and g minimises
 *
 *     Σ w (y − g · z)²  +  k Σ (g[i] − s)²
 *
 * w halves every 177 steps, s is the weighted mean of y, and k = v / (SPREAD × s)² with v the mean
 * square of what the predictions were off lately. Both sums are quadratic and the second is
 * strictly convex, so there is one minimum, which three equations give. Steps that differ in
 * their shares pull g to the truth the harder the better the model fits: where it fits exactly, v
 * and with it k go to 0, and g is exact. What steps cannot tell apart (each row brings its adapter
 * pages along, all steps look alike) does not move the first sum, and keeps to the prior's
 * proportion; and where the model does not fit (attention grows with the context, prompts cost less
 * a token than decode rows), k is large. A part stays within a factor of BOUND around s whatever
 * was measured. */
#include <math.h>

#include "base/check.h"
#include "scheduler/sched_internal.h"

#define KEEP (1 - 1.0 / 256) /* of the weight of all steps before, at each step */
#define SPREAD 0.5           /* deviation of a part from the common factor, as a share of it */
#define PRIOR_STEPS 8.0      /* weight of the prior's scale */
#define MISFIT 0.1           /* relative error that is taken for granted at first */
#define BOUND 6.0
#define OUTLIER 2.0   /* a step slower than this many predictions counts as this many */
#define LEAST_US 1e-3 /* priors are positive */
#define LEAST_NOISE 1e-9

enum { PARTS = SCHED_COST_PARTS };

static void predict(struct sched_cost *c) {
    for (uint32_t i = 0; i < PARTS; i++) {
        c->us[i] = c->prior[i] * c->factor[i];
    }
}

void sched_cost_open(struct sched *s) {
    struct sched_cost *c = &s->cost;
    const struct sched_options *o = &s->options;
    *c = (struct sched_cost){
        .prior = {fmax(o->step_us_fixed, LEAST_US), fmax(o->step_us_row * o->step_tokens, LEAST_US),
                  fmax(o->load_us_page * o->pages, LEAST_US)},
        .factor = {1, 1, 1},
        .ratio = PRIOR_STEPS,
        .weight = PRIOR_STEPS,
        .noise = MISFIT * MISFIT,
    };
    predict(c);
}

static void inputs(const struct sched *s, uint32_t tokens, uint32_t adapter_pages,
                   double x[PARTS]) {
    x[0] = 1;
    x[1] = (double)tokens / s->options.step_tokens;
    x[2] = (double)adapter_pages / s->options.pages;
}

static double dot(const double a[PARTS], const double b[PARTS]) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

double sched_step_us(const struct sched *s, uint32_t tokens, uint32_t adapter_pages) {
    double x[PARTS];
    inputs(s, tokens, adapter_pages, x);
    return dot(s->cost.us, x);
}

double sched_scaled_us(const struct sched *s, double prior_us) {
    return prior_us * s->cost.ratio / s->cost.weight;
}

/* Solves m d = b for a symmetric positive definite m, which it overwrites: Cholesky. */
static void solve(double m[PARTS][PARTS], const double b[PARTS], double d[PARTS]) {
    for (uint32_t i = 0; i < PARTS; i++) {
        for (uint32_t j = 0; j <= i; j++) {
            double sum = m[i][j];
            for (uint32_t k = 0; k < j; k++) {
                sum -= m[i][k] * m[j][k];
            }
            m[i][j] = i == j ? sqrt(fmax(sum, LEAST_NOISE)) : sum / m[j][j];
        }
    }
    for (uint32_t i = 0; i < PARTS; i++) {
        d[i] = b[i];
        for (uint32_t k = 0; k < i; k++) {
            d[i] -= m[i][k] * d[k];
        }
        d[i] /= m[i][i];
    }
    for (uint32_t i = PARTS; i-- > 0;) {
        for (uint32_t k = i + 1; k < PARTS; k++) {
            d[i] -= m[k][i] * d[k];
        }
        d[i] /= m[i][i];
    }
}

/* The factors that what was seen and the prior agree on. */
static void fit(struct sched_cost *c) {
    double common = c->ratio / c->weight;
    double prior_weight = fmax(c->noise / (SPREAD * SPREAD * common * common), LEAST_NOISE);
    double m[PARTS][PARTS];
    double b[PARTS];
    double d[PARTS];
    for (uint32_t i = 0; i < PARTS; i++) {
        b[i] = c->seen_y[i];
        for (uint32_t j = 0; j < PARTS; j++) {
            m[i][j] = c->seen[i][j] + (i == j ? prior_weight : 0);
            b[i] -= common * c->seen[i][j];
        }
    }
    solve(m, b, d);
    for (uint32_t i = 0; i < PARTS; i++) {
        c->factor[i] = fmin(fmax(common + d[i], common / BOUND), common * BOUND);
    }
    predict(c);
}

void sched_learn(struct sched *s, uint32_t tokens, uint32_t adapter_pages, double us) {
    struct sched_cost *c = &s->cost;
    double z[PARTS];
    if (!isfinite(us) || us <= 0) {
        return; /* a clock that stood still teaches nothing */
    }
    inputs(s, tokens, adapter_pages, z);
    double before = dot(c->prior, z);
    double expected = dot(c->us, z) / before;
    double y = fmin(us / before, OUTLIER * expected);
    for (uint32_t i = 0; i < PARTS; i++) {
        z[i] *= c->prior[i] / before;
    }
    c->noise = KEEP * c->noise + (1 - KEEP) * (y - expected) * (y - expected);
    c->ratio = KEEP * c->ratio + y;
    c->weight = KEEP * c->weight + 1;
    for (uint32_t i = 0; i < PARTS; i++) {
        c->seen_y[i] = KEEP * c->seen_y[i] + z[i] * y;
        for (uint32_t j = 0; j < PARTS; j++) {
            c->seen[i][j] = KEEP * c->seen[i][j] + z[i] * z[j];
        }
    }
    fit(c);
}
