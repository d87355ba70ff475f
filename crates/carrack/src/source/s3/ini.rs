//! Files of Amazon's tools: `~/.aws/credentials` and `~/.aws/config`.
//!
//! In       their text.
//! Out      the settings of one profile, names in lower case.
//! Not here what the settings mean; nested settings (indented lines) are left out.

use std::collections::HashMap;

/// The settings of `profile`; empty if there is no such profile. Sections are `[NAME]` in one file
/// and `[profile NAME]` in the other.
pub(super) fn profile(text: &str, profile: &str) -> HashMap<String, String> {
    let mut settings = HashMap::new();
    let mut here = false;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            let name = section.split(']').next().unwrap_or_default().trim();
            let long = name.strip_prefix("profile").map(str::trim_start);
            here = name == profile || (long == Some(profile) && name != long.unwrap_or_default());
            continue;
        }
        if let (true, false, Some((name, value))) = (here, is_nested, line.split_once('=')) {
            let value = value.trim();
            if !value.is_empty() {
                settings.insert(name.trim().to_ascii_lowercase(), value.to_owned());
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::profile;

    const TEXT: &str = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=a=b\n\
                        [profile work]\nAWS_ACCESS_KEY_ID=W\ns3 =\n  region = x\n[work2]\nk=v";

    #[test]
    fn a_profile_has_its_own_settings_only() {
        let default = profile(TEXT, "default");
        assert_eq!(default["aws_access_key_id"], "A");
        assert_eq!(default["aws_secret_access_key"], "a=b");
        assert_eq!(
            profile(TEXT, "work").len(),
            1,
            "{:?}",
            profile(TEXT, "work")
        );
        assert_eq!(profile(TEXT, "work2")["k"], "v");
        assert!(profile(TEXT, "other").is_empty());
        assert!(profile("", "default").is_empty());
    }
}
