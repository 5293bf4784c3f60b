/*
 * How a call reaches a server, and its answer the client: at most once, never twice, never lost.
 *
 * One client, the kernel, two servers. Servers die and come back, hang, and end late; the kernel
 * dies and forgets everything, then all attach again and the client sends again what it may. Call 0
 * is idempotent, call 1 is not. What is modelled is what kernel/core/calls.py, src/llmos/lib/port.py
 * and proto/llmos/api/kernel/v1/port.proto say, as far as it decides delivery; payloads, classes
 * and time are left out (the absence of a server is: it comes back).
 *
 * Checked by tests/unit/kernel/test_spin.py, by name:
 *   no_call_is_answered_twice, at_most_once, answers_are_truthful, credits_hold: at every moment
 *   no_call_is_lost, no_credit_is_leaked: at the end of every run
 *   every_run_ends: there is no cycle at all (non-progress cycles are looked for)
 * Each MUTATION below breaks one rule of the protocol, and a property must notice.
 */

#define CALLS 2
#define SERVERS 2
#define TRIES 3 /* servers that one call is given to */

/* How many accidents there may be at most, all together. */
#ifndef DEATHS
#define DEATHS 1 /* of servers */
#endif
#ifndef HANGS
#define HANGS 1
#endif
#ifndef CRASHES
#define CRASHES 1 /* of the kernel */
#endif

#define IDEMPOTENT(i) ((i) == 0)

#ifdef REDISPATCH_ALL
#define MAY_GO_TO_ANOTHER(i) true /* MUTATION */
#else
#define MAY_GO_TO_ANOTHER(i) IDEMPOTENT(i)
#endif

#ifdef RESEND_ALL
#define MAY_BE_SENT_AGAIN(i) true /* MUTATION */
#else
#define MAY_BE_SENT_AGAIN(i) IDEMPOTENT(i)
#endif

mtype = { OPEN, CANCEL, END, ATTACH, DETACHED, OK, FAILED };
mtype = { NONE, QUEUED, RUNNING };

/* The streams. A message has a call and, to and from servers, the id of one dispatch of it. */
chan to_kernel = [2] of { mtype, byte };
chan to_client = [2] of { mtype, byte };
chan to_server[SERVERS] = [2] of { mtype, byte, byte };
chan from_server[SERVERS] = [4] of { mtype, byte, byte };

byte epoch; /* life of the kernel */
byte stream[SERVERS]; /* number of the stream that a server has open */
byte deaths, hangs, crashes; /* accidents still to come; `init` chooses how many */

/* What the properties are about. */
byte answers[CALLS];
byte runs[CALLS]; /* how often servers took the call */
byte given[CALLS]; /* how often it was given to one */

/* The kernel's tables. */
mtype state[CALLS];
byte where[CALLS], id[CALLS], tries[CALLS];
bool attached[SERVERS], stalled[SERVERS];
byte used[SERVERS]; /* credits; each server has one */
byte known[SERVERS]; /* number of the stream that the kernel writes to */
byte last_id;

#define answered(i) (answers[i] == 1)

/* In the model no write waits: the streams are long enough. */
inline put(c, kind, i, number) {
  assert(nfull(c));
  c ! kind(i, number)
}

inline answer(i) {
  answers[i]++;
  assert(answers[i] == 1) /* no_call_is_answered_twice */
}

inline flush2(c) { do :: c ? _, _ :: empty(c) -> break od }
inline flush3(c) { do :: c ? _, _, _ :: empty(c) -> break od }

/* Client. */

byte client_epoch;
bool sent[CALLS];

inline attach_client_again() {
  client_epoch = epoch;
  n = 0;
  do
  :: n < CALLS ->
     if
     :: sent[n] && answers[n] == 0 && MAY_BE_SENT_AGAIN(n) ->
#ifndef FORGET_TO_RESEND /* MUTATION */
        to_kernel ! OPEN(n);
#endif
        skip
     :: sent[n] && answers[n] == 0 && !MAY_BE_SENT_AGAIN(n) -> answer(n) /* it may have run */
     :: else
     fi;
     n++
  :: else -> break
  od;
  n = 0
}

active proctype Client() {
  byte n;
end:
  do
  :: atomic { client_epoch == epoch && !sent[0] -> sent[0] = true; to_kernel ! OPEN(0) }
  :: atomic { client_epoch == epoch && !sent[1] -> sent[1] = true; to_kernel ! OPEN(1) }
  :: atomic { to_client ? OK(n) -> answer(n); assert(runs[n] > 0) /* answers_are_truthful */; n = 0 }
  :: atomic { to_client ? FAILED(n) -> answer(n); assert(given[n] > 0) /* answers_are_truthful */; n = 0 }
  :: atomic { client_epoch != epoch -> attach_client_again() }
  od
}

/* Kernel. */

#define CAN_TAKE(s) (attached[s] && !stalled[s] && used[s] == 0)

/* What is written to a stream that has ended is lost, though the kernel may not know that yet. */
inline write(s, kind, i, number) {
  if
  :: known[s] == stream[s] -> put(to_server[s], kind, i, number)
  :: else
  fi
}

inline dispatch(i, s) {
  last_id++;
  state[i] = RUNNING;
  where[i] = s;
  id[i] = last_id;
  tries[i]++;
  used[s]++;
  given[i]++;
  write(s, OPEN, i, last_id)
}

inline go_elsewhere(i) {
  if
  :: MAY_GO_TO_ANOTHER(i) && tries[i] < TRIES -> state[i] = QUEUED
  :: else -> state[i] = NONE; to_client ! FAILED(i)
  fi
}

inline server_ended(s) {
  if
  :: state[n] == RUNNING && where[n] == s && id[n] == d ->
     state[n] = NONE;
     to_client ! OK(n);
     used[s]--
  :: else -> /* it was moved away before: only now has the work stopped */
#ifdef PASS_LATE_ANSWERS /* MUTATION */
     to_client ! OK(n);
#endif
#ifndef FORGET_CREDIT /* MUTATION */
     used[s]--;
#endif
     skip
  fi;
  stalled[s] = false;
  n = 0; d = 0
}

inline server_died(s) {
  attached[s] = false;
  stalled[s] = false;
  used[s] = 0;
  n = 0;
  do
  :: n < CALLS ->
     if
     :: state[n] == RUNNING && where[n] == s -> go_elsewhere(n)
     :: else
     fi;
     n++
  :: else -> break
  od;
  n = 0; d = 0
}

/* `s` finishes nothing: move the call that it runs away, if that is allowed. */
inline found_hung(s) {
  hangs--;
  stalled[s] = true;
  n = 0;
  do
  :: n < CALLS ->
     if
     :: state[n] == RUNNING && where[n] == s && MAY_GO_TO_ANOTHER(n) && tries[n] < TRIES ->
        write(s, CANCEL, n, id[n]);
        state[n] = QUEUED
     :: else
     fi;
     n++
  :: else -> break
  od;
  n = 0
}

inline kernel_dies() {
  crashes--;
  epoch++;
  flush2(to_kernel); flush2(to_client);
  flush3(to_server[0]); flush3(to_server[1]);
  flush3(from_server[0]); flush3(from_server[1]);
  n = 0;
  do
  :: n < CALLS -> state[n] = NONE; where[n] = 0; id[n] = 0; tries[n] = 0; n++
  :: else -> break
  od;
  n = 0;
  do
  :: n < SERVERS -> attached[n] = false; stalled[n] = false; used[n] = 0; known[n] = 0; n++
  :: else -> break
  od;
  n = 0; last_id = 0
}

#define FROM_SERVER(s) \
  :: atomic { from_server[s] ? END(n, d) -> server_ended(s) } \
  :: atomic { from_server[s] ? DETACHED(n, d) -> server_died(s) } \
  :: atomic { from_server[s] ? ATTACH(n, d) -> attached[s] = true; known[s] = d; n = 0; d = 0 } \
  :: atomic { hangs > 0 && used[s] > 0 && !stalled[s] -> found_hung(s) }

active proctype Kernel() {
  byte n, d;
end:
  do
  :: atomic { to_kernel ? OPEN(n) -> state[n] = QUEUED; n = 0 }
  :: atomic { state[0] == QUEUED && CAN_TAKE(0) -> dispatch(0, 0) }
  :: atomic { state[0] == QUEUED && CAN_TAKE(1) -> dispatch(0, 1) }
  :: atomic { state[1] == QUEUED && CAN_TAKE(0) -> dispatch(1, 0) }
  :: atomic { state[1] == QUEUED && CAN_TAKE(1) -> dispatch(1, 1) }
  FROM_SERVER(0)
  FROM_SERVER(1)
  :: atomic { crashes > 0 -> kernel_dies() }
  od
}

/* Servers. */

inline attach_server(s) {
  mine = epoch;
  busy = false;
  stream[s]++;
  flush3(to_server[s]); /* a new stream is empty */
  put(from_server[s], ATTACH, 0, stream[s])
}

/* `kill -9`: what was on its way to it is lost, what it had sent may be. */
inline server_dies(s) {
  deaths--;
  alive = false;
  busy = false;
  if
  :: mine == epoch ->
     if
     :: true -> flush3(from_server[s])
     :: true
     fi;
     put(from_server[s], DETACHED, 0, 0)
  :: else
  fi
}

proctype Server(byte s) {
  byte call, number, n, d;
  byte mine = 255; /* life of the kernel that it is attached to */
  bool alive, busy;
end:
  do
  :: atomic { alive && mine != epoch -> attach_server(s) } /* it stops what it did */
  :: atomic { !alive -> alive = true; attach_server(s) }
  :: atomic { alive && mine == epoch && to_server[s] ? [OPEN, _, _] ->
       to_server[s] ? OPEN(call, number);
       assert(!busy); /* credits_hold */
       busy = true;
       runs[call]++;
       assert(IDEMPOTENT(call) || runs[call] == 1) /* at_most_once */
     }
  :: atomic { alive && mine == epoch && to_server[s] ? [CANCEL, _, _] ->
       to_server[s] ? CANCEL(n, d);
       if
       :: busy && number == d -> busy = false; put(from_server[s], END, n, d)
       :: else /* its END is on its way */
       fi;
       n = 0; d = 0
     }
  :: atomic { alive && mine == epoch && busy ->
       busy = false;
       put(from_server[s], END, call, number);
       call = 0; number = 0
     }
  :: atomic { alive && deaths > 0 -> server_dies(s) }
  od
}

active proctype AtTheEnd() {
  timeout -> /* nobody can do anything any more */
  assert(answered(0) && answered(1)); /* no_call_is_lost */
  assert(used[0] == 0 && used[1] == 0) /* no_credit_is_leaked */
}

init {
  atomic {
    do :: deaths < DEATHS -> deaths++ :: break od;
    do :: hangs < HANGS -> hangs++ :: break od;
    do :: crashes < CRASHES -> crashes++ :: break od;
    run Server(0); run Server(1)
  }
}
