//! A small stable digest (64-bit FNV-1a): it only has to tell changed from unchanged and to be the same in every
//! version of bowl on every machine, which the standard library's hasher does not promise.

/// The digest of bytes.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    #[test]
    fn published_values() {
        assert_eq!(super::digest(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(super::digest(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
