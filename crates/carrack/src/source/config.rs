//! What is configured of a source, and what its surroundings say.
//!
//! In       variables of the process or of a client; a [`SourceUrl`].
//! Out      an [`Environment`], a [`SourceConfig`].
//! Not here how a source is made of it (`open`), the row that remembers it (`store::catalog`).

use std::collections::HashMap;

use super::url::{Scheme, SourceUrl};

/// The variables that sources may look at, taken by the command line from the process or from the
/// client that sent a command. Secrets among them stay in memory.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
}

impl Environment {
    /// Those of `variables` that sources know: of AWS, Google, Azure, and the home directory.
    #[must_use]
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let known = |name: &str| {
            ["AWS_", "GOOGLE_", "AZURE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
                || name == "HOME"
        };
        let variables = variables.into_iter().filter(|(name, _)| known(name));
        Self {
            variables: variables.collect(),
        }
    }

    /// The value of a variable, if it is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    /// Whether `other` has the same variables and values.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.variables == other.variables
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// What is configured of a source. The catalog's row of it has the same fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceConfig {
    /// `s3://`, `gs://`, `az://`, `http://`, `https://`, or the absolute path of a folder.
    pub url: String,
    /// The server that answers for a bucket; empty for the provider's own.
    pub endpoint: String,
    /// The region of a bucket; empty for the provider's default.
    pub region: String,
    /// `env`, `profile:NAME`, `file:PATH`, `web-identity` or `none`.
    pub credentials: String,
    /// Of a web server: origins that its requests may be sent on to, besides its own.
    pub redirects: Vec<String>,
    /// Of a web server: its name, and those of `redirects`, may lead to private addresses.
    pub private: bool,
}

impl SourceConfig {
    /// What the environment says of a place that nobody has configured: the server, the region,
    /// and where credentials are to be looked for.
    #[must_use]
    pub fn from_environment(url: &SourceUrl, environment: &Environment) -> Self {
        let first = |names: &[&str]| {
            let value = names.iter().find_map(|name| environment.get(name));
            value.unwrap_or_default().to_owned()
        };
        let mut config = Self {
            url: url.to_string(),
            ..Self::default()
        };
        match url.scheme() {
            Scheme::S3 => {
                config.endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
                config.region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
                config.credentials = "env".to_owned();
            }
            Scheme::Gcs => {
                config.credentials = "env".to_owned();
            }
            Scheme::Azure => {
                config.endpoint = first(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]);
                config.credentials = "env".to_owned();
            }
            Scheme::Http | Scheme::Https => "none".clone_into(&mut config.credentials),
        }
        config
    }
}
