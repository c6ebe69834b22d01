//! A node that loses messages on purpose, so that the ledger test can be seen to notice.

/// Whether this process fills no holes and resumes nothing. Only builds with debug assertions know the
/// variable that says so.
pub(crate) fn is_lossy() -> bool {
    #[cfg(debug_assertions)]
    {
        static LOSSY: std::sync::LazyLock<bool> =
            std::sync::LazyLock::new(|| std::env::var("GATEWAY_TEST_LOSSY").is_ok_and(|value| value == "1"));
        *LOSSY
    }
    #[cfg(not(debug_assertions))]
    false
}
