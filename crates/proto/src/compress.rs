//! The four codecs of payloads: LZ4 (raw block), ZLIB, ZSTD, SNAPPY (raw).
//!
//! A message says how large its payload is when unpacked. [`decompress`] allocates that much and no
//! more, after checking it against the caller's limit, and it is an error if the data does not
//! unpack to exactly that.

use bytes::Bytes;

use crate::error::CompressionError;
use crate::pb::CompressionType;

/// How hard zlib and zstd try: their own defaults, as in other clients.
const ZLIB_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// Packs a payload.
pub fn compress(codec: CompressionType, raw: &Bytes) -> Result<Bytes, CompressionError> {
    match codec {
        CompressionType::None => Ok(raw.clone()),
        CompressionType::Lz4 => Ok(lz4_flex::block::compress(raw).into()),
        CompressionType::Zlib => {
            let mut packed = Vec::with_capacity(raw.len() / 2 + 64);
            let mut encoder =
                flate2::read::ZlibEncoder::new(&raw[..], flate2::Compression::new(ZLIB_LEVEL));
            std::io::Read::read_to_end(&mut encoder, &mut packed)
                .map_err(|error| broken("zlib", &error))?;
            Ok(packed.into())
        }
        CompressionType::Zstd => zstd::bulk::compress(raw, ZSTD_LEVEL)
            .map(Bytes::from)
            .map_err(|error| broken("zstd", &error)),
        CompressionType::Snappy => snap::raw::Encoder::new()
            .compress_vec(raw)
            .map(Bytes::from)
            .map_err(|error| broken("snappy", &error)),
    }
}

/// Unpacks a payload to `uncompressed_size` bytes, which must be at most `size_max`.
///
/// `codec` is the number in the metadata. Without compression the payload is returned as it is.
pub fn decompress(
    codec: i32,
    packed: &Bytes,
    uncompressed_size: usize,
    size_max: usize,
) -> Result<Bytes, CompressionError> {
    let codec =
        CompressionType::try_from(codec).map_err(|_| CompressionError::UnknownType(codec))?;
    if codec == CompressionType::None {
        return Ok(packed.clone());
    }
    if uncompressed_size > size_max {
        return Err(CompressionError::TooLarge {
            size: uncompressed_size,
            max: size_max,
        });
    }
    if codec == CompressionType::Snappy {
        // Snappy's own header says a size; it is checked before anything is written.
        let says = snap::raw::decompress_len(packed).map_err(|error| broken("snappy", &error))?;
        if says != uncompressed_size {
            return Err(CompressionError::WrongSize {
                expected: uncompressed_size,
                actual: says,
            });
        }
    }
    let mut raw = vec![0; uncompressed_size];
    let actual = match codec {
        CompressionType::None => 0,
        CompressionType::Lz4 => lz4_flex::block::decompress_into(packed, &mut raw)
            .map_err(|error| broken("lz4", &error))?,
        CompressionType::Zlib => inflate(packed, &mut raw)?,
        CompressionType::Zstd => zstd::bulk::decompress_to_buffer(packed, &mut raw)
            .map_err(|error| broken("zstd", &error))?,
        CompressionType::Snappy => snap::raw::Decoder::new()
            .decompress(packed, &mut raw)
            .map_err(|error| broken("snappy", &error))?,
    };
    if actual != uncompressed_size {
        return Err(CompressionError::WrongSize {
            expected: uncompressed_size,
            actual,
        });
    }
    Ok(raw.into())
}

fn inflate(packed: &[u8], raw: &mut [u8]) -> Result<usize, CompressionError> {
    let mut inflater = flate2::Decompress::new(true);
    let status = inflater
        .decompress(packed, raw, flate2::FlushDecompress::Finish)
        .map_err(|error| broken("zlib", &error))?;
    if status != flate2::Status::StreamEnd {
        return Err(broken("zlib", &"the stream does not end where it should"));
    }
    // At most raw.len(), so it fits.
    Ok(inflater.total_out() as usize)
}

fn broken(codec: &'static str, reason: &dyn std::fmt::Display) -> CompressionError {
    CompressionError::Broken {
        codec,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [CompressionType; 5] = [
        CompressionType::None,
        CompressionType::Lz4,
        CompressionType::Zlib,
        CompressionType::Zstd,
        CompressionType::Snappy,
    ];

    proptest! {
        #[test]
        fn what_is_packed_unpacks(raw in proptest::collection::vec(0u8..4, 0..2000)) {
            let raw = Bytes::from(raw);
            for codec in ALL {
                let packed = compress(codec, &raw).unwrap();
                let back = decompress(codec as i32, &packed, raw.len(), raw.len()).unwrap();
                prop_assert_eq!(&back, &raw);
            }
        }

        #[test]
        fn garbage_is_an_error_of_bounded_size(packed: Vec<u8>, size in 0usize..1000) {
            let packed = Bytes::from(packed);
            for codec in &ALL[1..] {
                if let Ok(raw) = decompress(*codec as i32, &packed, size, 1000) {
                    prop_assert_eq!(raw.len(), size);
                }
            }
        }
    }

    #[test]
    fn a_wrong_size_is_an_error_for_every_codec() {
        let raw = Bytes::from(vec![b'a'; 1000]);
        for codec in &ALL[1..] {
            let packed = compress(*codec, &raw).unwrap();
            for size in [0, 999, 1001] {
                let result = decompress(*codec as i32, &packed, size, 2000);
                assert!(result.is_err(), "{codec:?} at {size}");
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_opened() {
        let packed = compress(CompressionType::Zstd, &Bytes::from(vec![0; 1 << 20])).unwrap();
        let error = decompress(3, &packed, 1 << 20, 1000).unwrap_err();
        assert_eq!(
            error,
            CompressionError::TooLarge {
                size: 1 << 20,
                max: 1000
            }
        );
        let error = decompress(9, &packed, 1, 1000).unwrap_err();
        assert_eq!(error, CompressionError::UnknownType(9));
    }
}
