use super::*;

const TYPE: &str = "multipart/form-data; boundary=XyZ";

fn split(
    content_type: &str,
    form: &[u8],
    step: usize,
) -> Result<Vec<(String, Vec<u8>)>, FormError> {
    let mut splitter = Splitter::new(content_type)?;
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    for chunk in form.chunks(step) {
        splitter.push(chunk);
        while let Some(event) = splitter.next()? {
            match event {
                Event::Part(head) => parts.push((head.name, Vec::new())),
                Event::Data(bytes) => parts.last_mut().unwrap().1.extend_from_slice(&bytes),
                Event::PartEnd | Event::End => {}
            }
        }
        assert!(splitter.buffer.len() <= HEADER_BYTES_MAX + step);
    }
    splitter.finish()?;
    Ok(parts)
}

const FORM: &[u8] = b"preamble\r\n--XyZ\r\n\
    Content-Disposition: form-data; name=\"functionConfig\"\r\nContent-Type: application/json\r\n\r\n\
    {\"a\":1}\r\n--XyZ\r\nContent-Disposition: form-data; name=data; filename=\"a\\\"b.sh\"\r\n\r\n\
    line\r\n--Xy almost\r\n\r\n--XyZ\r\nContent-Disposition: form-data; name=\"empty\"\r\n\r\n\r\n--XyZ--\r\nafter";

#[test]
fn cuts_alike_however_it_arrives() {
    for step in 1..FORM.len() {
        let parts = split(TYPE, FORM, step).unwrap();
        let want: Vec<(String, Vec<u8>)> = vec![
            ("functionConfig".into(), b"{\"a\":1}".to_vec()),
            ("data".into(), b"line\r\n--Xy almost\r\n".to_vec()),
            ("empty".into(), Vec::new()),
        ];
        assert_eq!(parts, want, "step {step}");
    }
}

#[test]
fn refuses_what_is_not_a_form() {
    let many = "--b\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n".repeat(PARTS_MAX + 1);
    let long = format!("--b\r\nX: {}", "y".repeat(2 * HEADER_BYTES_MAX));
    for (content_type, form, error) in [
        ("application/json", "", FormError::NotAForm),
        ("multipart/form-data", "", FormError::NotAForm),
        ("multipart/form-data; boundary=", "", FormError::NotAForm),
        ("multipart/form-data; boundary=b", "", FormError::Cut),
        (
            "multipart/form-data; boundary=b",
            "--b\r\n\r\n\r\n",
            FormError::NoName,
        ),
        (
            "multipart/form-data; boundary=b",
            "--bx\r\n",
            FormError::Garbage,
        ),
        (
            "multipart/form-data; boundary=b",
            &many,
            FormError::TooManyParts,
        ),
        (
            "multipart/form-data; boundary=b",
            &long,
            FormError::HeaderTooLong,
        ),
    ] {
        for step in [1, 7, 100_000] {
            if let Err(got) = split(content_type, form.as_bytes(), step) {
                assert_eq!(got, error, "{content_type} {form:.40}");
            } else {
                assert_eq!(FormError::Cut, error, "nothing was refused: {form:.40}");
            }
        }
    }
}

#[test]
fn garbage_never_panics() {
    let mut random = geminga_stdx::Random::new(0x6d70);
    for round in 0..2_000 {
        let mut form = FORM.to_vec();
        for _ in 0..1 + random.below(8) {
            let at = random.below(form.len() as u64) as usize;
            match random.below(3) {
                0 => form[at] = random.below(256) as u8,
                1 => form.truncate(at + 1),
                _ => form.insert(at, b"\r\n-XyZ:;=\""[random.below(10) as usize]),
            }
        }
        // Any result will do; the bound on memory is asserted inside.
        let _ = split(TYPE, &form, 1 + random.below(64) as usize);
        assert!(round < 2_000, "seed 0x6d70");
    }
}
