/* check.h - assertions that stay in release builds.
 *
 * A failed CHECK is a programmer error: it prints the expression and the place, then aborts; the
 * queue redelivers the jobs in flight. DCHECK is for hot loops and only checks in dev builds. */
#ifndef LORRY_BASE_CHECK_H
#define LORRY_BASE_CHECK_H

_Noreturn void check_failed(const char *expression, const char *file, int line);

#define CHECK(expression) ((expression) ? (void)0 : check_failed(#expression, __FILE__, __LINE__))

#ifdef LORRY_DCHECK
#define DCHECK(expression) CHECK(expression)
#else
#define DCHECK(expression) ((void)sizeof(!(expression)))
#endif

#endif
