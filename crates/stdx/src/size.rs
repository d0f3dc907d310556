//! Byte sizes and durations as people write them: `64MiB`, `1.5 GB`, `200ms`, `2m`.

use std::time::Duration;

/// Parses `4096`, `64KiB`, `1.5MB`; `K`, `M`, `G` alone mean the binary unit. The error says what was expected.
///
/// # Errors
/// When the text is no number with a known unit, or is negative or too large.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let scale: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(format!("`{text}` is not a size: write it like `64MiB`")),
    };
    scaled(text, number, scale, "a size: write it like `64MiB`").map(|bytes| bytes as u64)
}

/// Parses `200ms`, `1.5s`, `2m`, `1h`; a bare number is milliseconds.
///
/// # Errors
/// When the text is no number with a known unit, or is negative or too large.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let scale: f64 = match unit {
        "" | "ms" => 1e-3,
        "us" => 1e-6,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => {
            return Err(format!(
                "`{text}` is not a duration: write it like `200ms` or `5s`"
            ));
        }
    };
    scaled(
        text,
        number,
        scale,
        "a duration: write it like `200ms` or `5s`",
    )
    .map(Duration::from_secs_f64)
}

/// `1234567` as `1.2 MiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

fn scaled(text: &str, number: &str, scale: f64, what: &str) -> Result<f64, String> {
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not {what}"))?;
    let scaled = value * scale;
    // 2^53: beyond it a float no longer counts single units.
    if scaled.is_finite() && scaled < 9_007_199_254_740_992.0 {
        Ok(scaled)
    } else {
        Err(format!("`{text}` is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1.5 KB"), Ok(1500));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert!(parse_bytes("-1").is_err() && parse_bytes("4 parsecs").is_err());
        assert_eq!(parse_duration("200"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert!(parse_duration("soon").is_err());
        assert_eq!(format_bytes(1_300_000), "1.2 MiB");
    }
}
