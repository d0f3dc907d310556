//! The stats of a partitioned topic: the sum of its partitions'.
//!
//! Pure. Counts and rates are added; subscriptions of one name are one; lists are joined; what
//! cannot be added is the first partition's.

use serde_json::{Map, Value};

/// Fields in which the largest counts, not the sum: times.
fn is_time(name: &str) -> bool {
    name.contains("Timestamp") || name.contains("Time") || name.contains("AgeSeconds")
}

/// Adds the stats of one partition.
pub(super) fn add(sum: &mut Value, part: &Value) {
    let (Some(sum), Some(part)) = (sum.as_object_mut(), part.as_object()) else {
        return;
    };
    add_maps(sum, part);
}

fn add_maps(sum: &mut Map<String, Value>, part: &Map<String, Value>) {
    for (name, value) in part {
        match sum.get_mut(name) {
            None => {
                sum.insert(name.clone(), value.clone());
            }
            Some(have) => join(name, have, value),
        }
    }
}

fn join(name: &str, have: &mut Value, value: &Value) {
    match (&mut *have, value) {
        (Value::Number(a), Value::Number(b)) => {
            let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else {
                return;
            };
            if is_time(name) {
                if y > x {
                    *have = value.clone();
                }
            } else if let (Some(x), Some(y)) = (a.as_i64(), b.as_i64()) {
                *have = x.saturating_add(y).into();
            } else {
                *have = (x + y).into();
            }
        }
        (Value::Bool(a), Value::Bool(b)) => *a |= *b,
        (Value::Array(a), Value::Array(b)) => a.extend(b.iter().cloned()),
        (Value::Object(a), Value::Object(b)) => add_maps(a, b),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_are_added_and_subscriptions_joined() {
        let mut sum = json!({ "subscriptions": {} });
        let part = |n: i64| {
            json!({
                "msgInCounter": n, "msgRateIn": 0.5, "ownerBroker": "x",
                "subscriptions": { "s": {
                    "msgBacklog": n, "type": "Shared", "isDurable": true, "lastAckedTimestamp": n,
                    "consumers": [{ "consumerName": format!("c{n}") }]
                } },
            })
        };
        add(&mut sum, &part(1));
        add(&mut sum, &part(2));
        assert_eq!(
            sum,
            json!({
                "msgInCounter": 3, "msgRateIn": 1.0, "ownerBroker": "x",
                "subscriptions": { "s": {
                    "msgBacklog": 3, "type": "Shared", "isDurable": true, "lastAckedTimestamp": 2,
                    "consumers": [{ "consumerName": "c1" }, { "consumerName": "c2" }]
                } },
            })
        );
    }
}
