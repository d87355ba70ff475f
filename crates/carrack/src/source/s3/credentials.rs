//! Keys of buckets, found where the configuration says they are.
//!
//! In       `env`, `profile:NAME`, `file:PATH`, `web-identity` or `none`, and the environment.
//! Out      keys, as fresh as they have to be.
//! Limits   a file of [`FILE_LEN_MAX`] bytes, read again after [`FILE_AGE_MAX`]; services that give
//!          out keys have [`SERVICE_TIMEOUT`] to answer, and are asked again at the earliest after
//!          [`REFUSAL_TIME`] when they did not, [`FILE_AGE_MAX`] when their keys were refused.
//! Not here signing with them. No command is ever run to get keys (`credential_process`).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::{RetryConfig, StaticCredentialProvider};

use super::ini;
use crate::source::config::Environment;
use crate::source::{SourceError, SourceErrorKind};

const FILE_LEN_MAX: u64 = 1 << 20;
/// Tools that renew keys in a file do so minutes before the old ones expire.
const FILE_AGE_MAX: Duration = Duration::from_secs(60);
const SERVICE_TIMEOUT: Duration = Duration::from_secs(5);
const REFUSAL_TIME: Duration = Duration::from_secs(5);
/// What helps when there are no keys.
const ADVICE: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile by \
                      --credentials profile:NAME, or say --credentials none for a public bucket";

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Credentials {
    /// Requests are not signed.
    None,
    /// Fixed ones, or a service that gives them out: of an instance, a container, a web identity.
    Service {
        provider: Mutex<AwsCredentialProvider>,
        /// How to make the provider again; `None` for fixed keys.
        services: Option<Services>,
        refused: Mutex<Option<(Instant, SourceError)>>,
    },
    /// A profile in a file.
    File(FileCredentials),
}

/// Services that give out keys, as the environment tells of them.
#[derive(Debug)]
pub(super) struct Services {
    environment: Environment,
    region: String,
    /// Variables that are not looked at.
    except: &'static [&'static str],
    /// When their keys were last forgotten.
    forgot: Mutex<Option<Instant>>,
}

/// Keys in a file of `~/.aws/credentials`' format.
pub(super) struct FileCredentials {
    /// In the order in which they are looked into.
    paths: Vec<PathBuf>,
    profile: String,
    read: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl std::fmt::Debug for FileCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileCredentials")
            .field("paths", &self.paths)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// What `reference` names.
    pub(super) fn new(
        reference: &str,
        environment: &Environment,
        region: &str,
    ) -> Result<Self, SourceError> {
        match reference {
            "none" => Ok(Self::None),
            "" | "env" => Self::of_environment(environment, region),
            "web-identity" => {
                for name in ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"] {
                    if environment.get(name).is_none() {
                        return Err(unusable(&format!(
                            "--credentials web-identity needs {name} in the environment"
                        )));
                    }
                }
                const KEYS: &[&str] = &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
                Self::of_services(environment, region, KEYS)
            }
            _ => {
                if let Some(profile) = reference.strip_prefix("profile:") {
                    return Ok(Self::File(FileCredentials::of_profile(
                        profile,
                        environment,
                    )?));
                }
                let Some(path) = reference.strip_prefix("file:") else {
                    return Err(unusable(
                        "--credentials is env, profile:NAME, file:PATH, web-identity or none",
                    ));
                };
                Ok(Self::File(FileCredentials::new(
                    vec![PathBuf::from(path)],
                    profile_of(environment),
                )))
            }
        }
    }

    /// The order is that of Amazon's own tools: keys, web identity, profile, container, instance.
    fn of_environment(environment: &Environment, region: &str) -> Result<Self, SourceError> {
        let is_set = |name: &str| environment.get(name).is_some();
        let (id, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
        match (environment.get(id), environment.get(secret)) {
            // No service is asked, so nothing is needed that a connection to one needs.
            (Some(id), Some(secret)) => return Ok(Self::of_keys(id, secret, environment)),
            (None, None) => {}
            (found, _) => {
                let missing = if found.is_some() { secret } else { id };
                return Err(unusable(&format!(
                    "{missing} is not set in the environment"
                )));
            }
        }
        let identity = is_set("AWS_WEB_IDENTITY_TOKEN_FILE") && is_set("AWS_ROLE_ARN");
        if !identity {
            let profile = FileCredentials::of_profile(&profile_of(environment), environment);
            if let Ok(profile) = profile
                && (is_set("AWS_PROFILE") || profile.look().is_ok())
            {
                return Ok(Self::File(profile));
            }
        }
        Self::of_services(environment, region, &[])
    }

    fn of_keys(id: &str, secret: &str, environment: &Environment) -> Self {
        let keys = AwsCredential {
            key_id: id.to_owned(),
            secret_key: secret.to_owned(),
            token: environment.get("AWS_SESSION_TOKEN").map(str::to_owned),
        };
        Self::Service {
            provider: Mutex::new(Arc::new(StaticCredentialProvider::new(keys))),
            services: None,
            refused: Mutex::default(),
        }
    }

    fn of_services(
        environment: &Environment,
        region: &str,
        except: &'static [&'static str],
    ) -> Result<Self, SourceError> {
        let services = Services {
            environment: environment.clone(),
            region: region.to_owned(),
            except,
            forgot: Mutex::default(),
        };
        Ok(Self::Service {
            provider: Mutex::new(services.provider()?),
            services: Some(services),
            refused: Mutex::default(),
        })
    }

    /// The keys to sign with; `None`: requests are not signed.
    pub(super) async fn get(&self) -> Result<Option<Arc<AwsCredential>>, SourceError> {
        match self {
            Self::None => Ok(None),
            Self::File(file) => file.get().map(Some),
            Self::Service {
                provider, refused, ..
            } => {
                let hold = || refused.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((since, error)) = &*hold()
                    && since.elapsed() < REFUSAL_TIME
                {
                    return Err(error.clone());
                }
                let provider = Arc::clone(&provider.lock().unwrap_or_else(PoisonError::into_inner));
                let asking = tokio::time::timeout(SERVICE_TIMEOUT, provider.get_credential());
                if let Ok(Ok(keys)) = asking.await {
                    return Ok(Some(keys));
                }
                // What the service answered may have parts of keys in it.
                let error = denied(&format!("no credentials: {ADVICE}"));
                *hold() = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The keys were refused: what was read from a file may be old, and so may what a service gave.
    /// That is kept until it expires by the clock of the moment when it came, which may have been
    /// wrong by years.
    pub(super) fn refused(&self) {
        match self {
            Self::None => {}
            Self::File(file) => {
                *file.read.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Self::Service {
                provider, services, ..
            } => {
                if let Some(services) = services.as_ref().filter(|services| services.may_forget())
                    && let Ok(again) = services.provider()
                {
                    *provider.lock().unwrap_or_else(PoisonError::into_inner) = again;
                }
            }
        }
    }
}

impl Services {
    /// Asks them when keys are needed, and keeps those until they expire.
    fn provider(&self) -> Result<AwsCredentialProvider, SourceError> {
        let retry = RetryConfig {
            max_retries: 1,
            retry_timeout: SERVICE_TIMEOUT,
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name("carrack") // Not used: no object is asked for through it.
            .with_retry(retry);
        for (name, value) in self.environment.iter() {
            let known = AmazonS3ConfigKey::from_str(&name.to_ascii_lowercase());
            // Its own ideas of servers and checksums are not for these requests.
            let of_keys = !name.contains("ENDPOINT_URL") || name == "AWS_ENDPOINT_URL_STS";
            if let (Ok(key), true, false) = (known, of_keys, self.except.contains(&name)) {
                builder = builder.with_config(key, value);
            }
        }
        let built = builder.with_region(&self.region).build();
        let store = built.map_err(|_| unusable(&format!("no credentials: {ADVICE}")))?;
        Ok(Arc::clone(store.credentials()))
    }

    /// Whether it is time to ask for keys again though those that are kept have not expired:
    /// strangers may make us send requests that are refused.
    fn may_forget(&self) -> bool {
        let mut forgot = self.forgot.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = forgot.is_none_or(|at| at.elapsed() >= FILE_AGE_MAX);
        if is_time {
            *forgot = Some(Instant::now());
        }
        is_time
    }
}

impl FileCredentials {
    fn new(paths: Vec<PathBuf>, profile: String) -> Self {
        Self {
            paths,
            profile,
            read: Mutex::default(),
        }
    }

    fn of_profile(profile: &str, environment: &Environment) -> Result<Self, SourceError> {
        let path = |variable: &str, name: &str| match environment.get(variable) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(Path::new(environment.get("HOME")?).join(".aws").join(name)),
        };
        let paths: Vec<PathBuf> = [
            path("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            path("AWS_CONFIG_FILE", "config"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if paths.is_empty() {
            return Err(unusable(
                "HOME is not set: name the file of the profile by AWS_SHARED_CREDENTIALS_FILE",
            ));
        }
        Ok(Self::new(paths, profile.to_owned()))
    }

    fn get(&self) -> Result<Arc<AwsCredential>, SourceError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, keys)) = &*read
            && since.elapsed() < FILE_AGE_MAX
        {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(self.look()?); // A small file of this machine.
        *read = Some((Instant::now(), Arc::clone(&keys)));
        Ok(keys)
    }

    /// Reads the files, up to the first that has the profile's keys.
    fn look(&self) -> Result<AwsCredential, SourceError> {
        let mut why = String::new();
        for path in &self.paths {
            let text = match read_text(path) {
                Ok(text) => text,
                Err(error) => {
                    why = format!("{}: {error}", path.display());
                    continue;
                }
            };
            let profile = ini::profile(&text, &self.profile);
            let value = |name: &str| profile.get(name).cloned();
            match (value("aws_access_key_id"), value("aws_secret_access_key")) {
                (Some(key_id), Some(secret_key)) => {
                    return Ok(AwsCredential {
                        key_id,
                        secret_key,
                        token: value("aws_session_token"),
                    });
                }
                _ if [
                    "credential_process",
                    "sso_session",
                    "sso_start_url",
                    "role_arn",
                ]
                .iter()
                .any(|name| profile.contains_key(*name)) =>
                {
                    return Err(denied(&format!(
                        "profile {} in {} gets its keys from a program or service, which is not \
                         done here: put them into the environment by `aws configure \
                         export-credentials --format env`",
                        self.profile,
                        path.display()
                    )));
                }
                _ => why = format!("{} has no keys of it", path.display()),
            }
        }
        Err(denied(&format!(
            "no credentials of profile {}: {why}",
            self.profile
        )))
    }
}

fn profile_of(environment: &Environment) -> String {
    environment
        .get("AWS_PROFILE")
        .unwrap_or("default")
        .to_owned()
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn unusable(why: &str) -> SourceError {
    SourceError::new(SourceErrorKind::Unusable, why)
}

fn denied(why: &str) -> SourceError {
    SourceError::new(SourceErrorKind::Denied, why)
}

#[cfg(test)]
mod tests;
