;; A component for windows: it answers with the payloads of a window, a blank after each. A window is its
;; number of messages, for each the lengths of block and payload, and then those, block and payload in turn
;; (docs/host-protocol.md).
(component
  (core module $code
    (memory (export "memory") 3)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
    (func (export "process") (param $at i32) (param $length i32) (result i32)
      (local $left i32) (local $sizes i32) (local $next i32) (local $end i32)
      (local.set $left (i32.load (local.get $at)))
      (local.set $sizes (i32.add (local.get $at) (i32.const 4)))
      (local.set $next (i32.add (local.get $sizes) (i32.mul (local.get $left) (i32.const 8))))
      (local.set $end (i32.const 65536))
      (block $all
        (loop $more
          (br_if $all (i32.eqz (local.get $left)))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (local.set $next (i32.add (local.get $next) (i32.load (local.get $sizes))))
          (memory.copy (local.get $end) (local.get $next) (i32.load offset=4 (local.get $sizes)))
          (local.set $end (i32.add (local.get $end) (i32.load offset=4 (local.get $sizes))))
          (local.set $next (i32.add (local.get $next) (i32.load offset=4 (local.get $sizes))))
          (i32.store8 (local.get $end) (i32.const 32))
          (local.set $end (i32.add (local.get $end) (i32.const 1)))
          (local.set $sizes (i32.add (local.get $sizes) (i32.const 8)))
          (br $more)))
      (i32.store (i32.const 64) (i32.const 0))
      (i32.store (i32.const 68) (i32.const 1))
      (i32.store (i32.const 72) (i32.const 65536))
      (i32.store (i32.const 76) (i32.sub (local.get $end) (i32.const 65536)))
      (i32.const 64)))
  (core instance $code (instantiate $code))
  (type $failure (variant
    (case "failed" string) (case "bad-data" string) (case "temporary" string) (case "drop")))
  (import "failure" (type $failed (eq $failure)))
  (func (export "process")
    (param "payload" (list u8)) (result (result (option (list u8)) (error $failed)))
    (canon lift (core func $code "process") (memory (core memory $code "memory"))
      (realloc (core func $code "realloc")))))
