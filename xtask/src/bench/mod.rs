//! stub
pub(crate) fn command(_args: &[&str]) -> crate::shell::Result<bool> {
    Ok(true)
}
