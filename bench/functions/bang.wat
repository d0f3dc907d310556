;; Puts `!` behind each message: a component of the world `geminga:function/function`, written by hand.
(component
  (core module $code
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 1024))
    ;; Memory for what the worker writes; it is free again when the message is done.
    (func (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.set $free (i32.add (local.get $at) (local.get $size)))
      (loop $more
        (if (i32.gt_u (global.get $free) (i32.mul (memory.size) (i32.const 65536)))
          (then
            (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))
            (br $more))))
      (local.get $at))
    (func (export "process") (param $at i32) (param $length i32) (result i32)
      ;; The worker's bytes are the last thing that was allocated: there is room behind them.
      (i32.store8 (i32.add (local.get $at) (local.get $length)) (i32.const 33))
      ;; ok(some(list)): two tags, then the list.
      (i32.store (i32.const 64) (i32.const 0))
      (i32.store (i32.const 68) (i32.const 1))
      (i32.store (i32.const 72) (local.get $at))
      (i32.store (i32.const 76) (i32.add (local.get $length) (i32.const 1)))
      (i32.const 64))
    (func (export "done") (param i32) (global.set $free (i32.const 1024))))
  (core instance $code (instantiate $code))
  (type $failure (variant
    (case "failed" string) (case "bad-data" string) (case "temporary" string) (case "drop")))
  (import "failure" (type $failed (eq $failure)))
  (func (export "process")
    (param "payload" (list u8)) (result (result (option (list u8)) (error $failed)))
    (canon lift (core func $code "process") (memory (core memory $code "memory"))
      (realloc (core func $code "realloc")) (post-return (core func $code "done")))))
