;; A component that answers as the functions of the matrix do (column/code.rs of geminga-functions' tests).
;; Memory: constants at 0, the result at 64, what is asked for at 128, from 4096 on what the host gives,
;; the answer from 65536 on.
(component
  (import "geminga:function/context@1.0.0" (instance $context
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (export "user-config" (func (param "key" string) (result (option string))))
    (export "secret" (func (param "name" string) (result (option string))))
    (export "state-get" (func (param "key" string) (result (option (list u8)))))
    (export "log" (func (param "level" $level) (param "text" string)))))
  (import "wasi:cli/environment@0.2.0" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))
    (export "get-arguments" (func (result (list string))))))
  (core module $memory
    (memory (export "memory") 3)
    (global $free (export "free") (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $at) (local.get 3)))
      (local.get $at)))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (alias core export $memory "realloc" (core func $realloc))
  (core func $user-config (canon lower (func $context "user-config") (memory $mem) (realloc $realloc)))
  (core func $secret (canon lower (func $context "secret") (memory $mem) (realloc $realloc)))
  (core func $state-get (canon lower (func $context "state-get") (memory $mem) (realloc $realloc)))
  (core func $log (canon lower (func $context "log") (memory $mem)))
  (core func $variables (canon lower (func $environment "get-environment") (memory $mem) (realloc $realloc)))
  (core func $arguments (canon lower (func $environment "get-arguments") (memory $mem) (realloc $realloc)))
  (core module $code
    (import "memory" "memory" (memory 3))
    (import "memory" "free" (global $free (mut i32)))
    (import "context" "user-config" (func $user-config (param i32 i32 i32)))
    (import "context" "secret" (func $secret (param i32 i32 i32)))
    (import "context" "state-get" (func $state-get (param i32 i32 i32)))
    (import "context" "log" (func $log (param i32 i32 i32)))
    (import "environment" "variables" (func $variables (param i32)))
    (import "environment" "arguments" (func $arguments (param i32)))
    (global $calls (mut i32) (i32.const 0))
    (global $end (mut i32) (i32.const 65536))
    (data (i32.const 0) "greetingtokennoneno lucksaw  ")
    (func $append (param $at i32) (param $length i32)
      (memory.copy (global.get $end) (local.get $at) (local.get $length))
      (global.set $end (i32.add (global.get $end) (local.get $length))))
    ;; A blank, and what was asked for, or "none".
    (func $append-asked
      (call $append (i32.const 28) (i32.const 1))
      (if (i32.load8_u (i32.const 128))
        (then (call $append (i32.load (i32.const 132)) (i32.load (i32.const 136))))
        (else (call $append (i32.const 13) (i32.const 4)))))
    (func $begins (param $at i32) (param $with i32) (result i32)
      (i32.eq (i32.load (local.get $at)) (local.get $with)))
    (func $answer (param $at i32) (param $length i32) (result i32)
      (i32.store (i32.const 64) (i32.const 0))
      (i32.store (i32.const 68) (i32.const 1))
      (i32.store (i32.const 72) (local.get $at))
      (i32.store (i32.const 76) (local.get $length))
      (i32.const 64))
    (func (export "process") (param $at i32) (param $length i32) (result i32)
      ;; "bad" fails, "no luck".
      (if (i32.and
            (i32.eq (local.get $length) (i32.const 3))
            (i32.eq (i32.and (i32.load (local.get $at)) (i32.const 0xffffff)) (i32.const 0x646162)))
        (then
          (i32.store (i32.const 64) (i32.const 1))
          (i32.store (i32.const 68) (i32.const 0))
          (i32.store (i32.const 72) (i32.const 17))
          (i32.store (i32.const 76) (i32.const 7))
          (return (i32.const 64))))
      ;; "wait:KEY" asks for the key until it is there.
      (if (call $begins (local.get $at) (i32.const 0x74696177))
        (then (loop $again
          (call $state-get
            (i32.add (local.get $at) (i32.const 5)) (i32.sub (local.get $length) (i32.const 5)) (i32.const 128))
          (br_if $again (i32.eqz (i32.load8_u (i32.const 128)))))))
      ;; "count"
      (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (if (call $begins (local.get $at) (i32.const 0x6e756f63))
        (then
          (i32.store8 (i32.const 65536) (i32.add (i32.const 48) (global.get $calls)))
          (return (call $answer (i32.const 65536) (i32.const 1)))))
      ;; "show": all that was given, which is in one piece.
      (if (call $begins (local.get $at) (i32.const 0x776f6873))
        (then
          (call $variables (i32.const 128))
          (call $arguments (i32.const 128))
          (return (call $answer (i32.const 4096) (i32.sub (global.get $free) (i32.const 4096))))))
      ;; "grow": 256 MiB
      (if (call $begins (local.get $at) (i32.const 0x776f7267))
        (then (drop (memory.grow (i32.const 4096)))))
      (global.set $end (i32.const 65536))
      (call $append (i32.const 24) (i32.const 4))
      (call $append (local.get $at) (local.get $length))
      (call $log (i32.const 3) (i32.const 65536) (i32.sub (global.get $end) (i32.const 65536)))
      (global.set $end (i32.const 65536))
      (call $append (local.get $at) (local.get $length))
      (call $user-config (i32.const 0) (i32.const 8) (i32.const 128))
      (call $append-asked)
      (call $secret (i32.const 8) (i32.const 5) (i32.const 128))
      (call $append-asked)
      (call $answer (i32.const 65536) (i32.sub (global.get $end) (i32.const 65536))))
    (func (export "done") (param i32) (global.set $free (i32.const 4096))))
  (core instance $code (instantiate $code
    (with "memory" (instance $memory))
    (with "environment" (instance
      (export "variables" (func $variables))
      (export "arguments" (func $arguments))))
    (with "context" (instance
      (export "user-config" (func $user-config))
      (export "secret" (func $secret))
      (export "state-get" (func $state-get))
      (export "log" (func $log))))))
  (type $failure (variant
    (case "failed" string) (case "bad-data" string) (case "temporary" string) (case "drop")))
  (import "failure" (type $failed (eq $failure)))
  (func (export "process")
    (param "payload" (list u8)) (result (result (option (list u8)) (error $failed)))
    (canon lift (core func $code "process") (memory $mem)
      (realloc $realloc) (post-return (core func $code "done")))))
