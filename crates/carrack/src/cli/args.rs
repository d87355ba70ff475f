//! The command line, as a type.
//!
//! In       arguments and the environment variables `CARRACK_DATA_DIR` and `CARRACK_CONFIG`.
//! Out      one [`Command`] with everything it needs to know.
//! Not here what commands do (one file each), how CIDs are written (`cli::target`).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use carrack_bitswap::driver::Multiaddr;
use clap::{Args, Parser, Subcommand};

/// Serve bytes where they already lie as content-addressed blocks.
#[derive(Debug, Parser)]
#[command(name = "carrack", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where carrack keeps its catalog, index and packs [default: the XDG data directory].
    #[arg(long, global = true, env = "CARRACK_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Print one JSON object a line.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Must agree with `ErrorKind::codes`; a test holds them together.
pub const EXIT_CODES: &str = "\
Exit codes: 0 done, 2 usage, 3 not found, 4 verification failed, 5 limit reached, 6 partly done, \
7 source changed, 8 unavailable, 9 store corrupt, 10 store in use, 70 bug.";

/// One command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add what is named, or take what was added before, and serve it over HTTP.
    Serve(ServeArgs),
    /// Add files and folders where they lie: nothing is copied.
    Add(AddArgs),
    /// Index CAR files where they lie; every block is verified.
    Import(ImportArgs),
    /// List the roots, or the entries of a directory.
    Ls(LsArgs),
    /// Print a file's bytes.
    Cat(CatArgs),
    /// Write a DAG as a CAR.
    Export(ExportArgs),
    /// Read and hash everything that a root, or the whole store, promises.
    Verify(VerifyArgs),
    /// Show what the store holds and which sources changed.
    Status,
    /// Look at the index, check it, or make it anew.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Configure, look after and move the places that data lie in.
    #[command(subcommand)]
    Source(SourceCommand),
    /// Drop roots, and what only they need. Source files are never touched.
    Rm(RmArgs),
    /// Look into a CID.
    #[command(subcommand)]
    Cid(CidCommand),
    /// Print the PeerID under which libp2p peers know this node.
    Id,
    /// List the libp2p peers that are connected, and what they want and got.
    Peers,
}

/// `carrack serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Folders, files, and CAR files (by the ending .car) to serve, on this machine or by URL:
    /// s3://bucket/prefix, gs://, az://, https://host/path.
    #[arg(value_name = "PATH|URL")]
    pub paths: Vec<OsString>,
    /// Go on looking at what is named: files that appear, change or vanish become a new root, and
    /// the old one stays for a while.
    #[arg(long, requires = "paths")]
    pub watch: bool,
    /// Seconds between two looks at what lies elsewhere. Changes of local folders are seen at once;
    /// so often, for a twentieth of the time at most, they are looked at for what is not told.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub watch_interval: u64,
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Where to listen for libp2p peers, which fetch over bitswap: /ip4/ADDR/tcp/PORT or
    /// /ip4/ADDR/udp/PORT/quic-v1, as often as needed; `off` for nowhere. [default: TCP and QUIC on
    /// port 4001]
    #[arg(long, value_name = "MULTIADDR")]
    pub p2p: Vec<P2pAddress>,
    /// Read the bounds of what libp2p peers may ask for from FILE, in TOML [default: carrack.toml
    /// in the data directory, if it is there].
    #[arg(long, env = "CARRACK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write one line a request to FILE; `-` is standard error.
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Memory for blocks on their way and for recently served ones, in MiB. Half of it is used only
    /// if something lies in a bucket or on a web server.
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(16..))]
    pub block_budget: u32,
    /// How files become DAGs.
    #[command(flatten)]
    pub dag: DagArgs,
    /// What is accepted of CARs.
    #[command(flatten)]
    pub car: CarArgs,
}

/// A value of `--p2p`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum P2pAddress {
    /// No peers at all.
    Off,
    /// An address to listen on.
    At(Multiaddr),
}

impl FromStr for P2pAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text
            .parse()
            .map_err(|error| format!("{error}; write it like /ip4/0.0.0.0/tcp/4001, or off"))?;
        Ok(Self::At(address))
    }
}

/// How files and folders become DAGs.
#[derive(Debug, Args, Clone)]
pub struct DagArgs {
    /// CID profile: unixfs-v1-2025 or unixfs-v0-2015 (IPIP-499).
    #[arg(long, default_value = "unixfs-v1-2025", value_name = "NAME")]
    pub profile: String,
    /// Cut files into pieces of N bytes instead of the profile's: size-N.
    #[arg(long, value_name = "size-N")]
    pub chunker: Option<String>,
    /// Leaves are the bytes themselves, whatever the profile says (true or false).
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub raw_leaves: Option<bool>,
    /// Links of an interior node, instead of the profile's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8192))]
    pub link_width: Option<u32>,
    /// Take hidden files and folders along (names that start with a dot).
    #[arg(long, short = 'H')]
    pub hidden: bool,
    /// Make no root if anything has to be left out: exit 8 instead of 6.
    #[arg(long)]
    pub strict: bool,
}

/// `carrack add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Files and folders, on this machine or by URL (s3://bucket/prefix, gs://, az://,
    /// https://host/path); each becomes a root of its own.
    #[arg(required = true, value_name = "PATH|URL")]
    pub paths: Vec<OsString>,
    /// Print only the root CIDs, one a line, in the order of the arguments.
    #[arg(long, short = 'Q')]
    pub quieter: bool,
    /// Make one directory that holds all arguments, and only that a root.
    #[arg(long, short = 'w')]
    pub wrap: bool,
    /// How files become DAGs.
    #[command(flatten)]
    pub dag: DagArgs,
}

/// `carrack import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// CAR files, on this machine or by URL; `-` with --copy reads a CAR from standard input.
    #[arg(required = true, value_name = "PATH|URL")]
    pub files: Vec<OsString>,
    /// Print only the root CIDs, one a line.
    #[arg(long, short = 'Q')]
    pub quieter: bool,
    /// Copy the blocks into carrack's own packs instead of leaving them where they are.
    #[arg(long)]
    pub copy: bool,
    /// What is accepted of CARs.
    #[command(flatten)]
    pub car: CarArgs,
}

/// How CARs are taken, by `import` and `serve` alike.
#[derive(Debug, Args, Clone, Default)]
pub struct CarArgs {
    /// Read and verify all of a CAR elsewhere, even if an index tells where its blocks are.
    #[arg(long)]
    pub verify: bool,
    /// Keep the good blocks of a damaged CAR.
    #[arg(long)]
    pub salvage: bool,
    /// Accept blocks of up to 8 MiB instead of 2 MiB. Most clients refuse them.
    #[arg(long)]
    pub allow_big_blocks: bool,
    /// Accept blocks named by SHA-1 or double SHA2-256, such as git objects.
    #[arg(long)]
    pub allow_legacy_hashes: bool,
    /// Take zero bytes at the end of a CAR for padding.
    #[arg(long)]
    pub allow_padding: bool,
}

/// `carrack ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// CID, CID/path, ipfs:// or gateway URL of a directory; without it the roots are listed.
    pub target: Option<OsString>,
}

/// `carrack cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// CID, CID/path, ipfs:// or gateway URL of a file.
    pub target: OsString,
    /// Bytes a to b, both included; `a-` runs to the end, `-n` takes the last n.
    #[arg(long, value_name = "a-b", allow_hyphen_values = true)]
    pub range: Option<String>,
}

/// `carrack export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// CID, CID/path, ipfs:// or gateway URL.
    pub target: OsString,
    /// File to write; `-` is standard output.
    #[arg(long, short, default_value = "-", value_name = "FILE")]
    pub output: PathBuf,
    /// How much below the target: all, entity or block.
    #[arg(long, default_value = "all", value_name = "SCOPE")]
    pub dag_scope: String,
    /// Write a block again each time the walk meets it.
    #[arg(long)]
    pub dups: bool,
}

/// `carrack verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// CID of a root; without it, all roots.
    pub target: Option<OsString>,
}

/// `carrack index …`.
#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Show segments, entries and disk use.
    Status,
    /// Read the whole index and compare it with its checksums.
    Verify,
    /// Make the index anew from packs, CARs and the nodes of files. Files are not read.
    Rebuild {
        /// Hash every block of packs and CARs, and leave out those that are not what they were.
        #[arg(long)]
        verify: bool,
        /// Make a catalog that is lost or damaged anew, of what the packs tell. What lies in files,
        /// CARs and sources elsewhere is to be added again after it.
        #[arg(long, conflicts_with = "verify")]
        catalog: bool,
    },
}

/// `carrack rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// CIDs of roots.
    #[arg(required = true)]
    pub roots: Vec<String>,
    /// Drop them even if roots that stay use blocks of theirs; those lack them then. Nobody looks
    /// whether there are any.
    #[arg(long)]
    pub force: bool,
}

/// `carrack source …`.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Configure a bucket, web server or folder, and add what is there.
    Add(SourceAddArgs),
    /// List what is configured.
    List,
    /// Ask every source, and name what is stale, missing, corrupt or unreachable.
    Status(SourceStatusArgs),
    /// Forget a source and the roots that were made from it. Its bytes are never touched.
    Rm {
        /// Its name.
        name: String,
        /// Forget it even if roots that stay use blocks of its roots; those lack them then.
        #[arg(long)]
        force: bool,
    },
    /// Take up what appeared, changed or went.
    Rescan(SourceRescanArgs),
    /// Point a source, or everything below a folder, at a new place that holds the same data.
    Relocate(SourceRelocateArgs),
}

/// `carrack source add`.
#[derive(Debug, Args)]
pub struct SourceAddArgs {
    /// s3://BUCKET/PREFIX, gs://, az://, https://HOST/PATH, or a folder.
    #[arg(value_name = "URL|PATH")]
    pub place: OsString,
    /// What to call it: a-z, 0-9, `.`, `_` and `-` [default: its URL].
    #[arg(long)]
    pub name: Option<String>,
    /// Where its credentials and server are.
    #[command(flatten)]
    pub access: SourceAccess,
    /// Only configure it.
    #[arg(long)]
    pub no_scan: bool,
    /// How files become DAGs.
    #[command(flatten)]
    pub dag: DagArgs,
}

/// How a source is reached. Holds no secrets: those are looked up where `credentials` says.
#[derive(Debug, Args, Clone)]
pub struct SourceAccess {
    /// The server that answers for a bucket [default: AWS_ENDPOINT_URL, or the provider's].
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The region of a bucket [default: AWS_REGION].
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Where credentials are: env, profile:NAME, file:PATH, web-identity or none.
    #[arg(long, value_name = "WHERE")]
    pub credentials: Option<String>,
    /// Where a web server may send requests on to besides itself, such as
    /// `https://cdn.example.org`; can be given several times.
    #[arg(long, value_name = "ORIGIN")]
    pub allow_redirect: Vec<String>,
    /// The names of a web server may lead to addresses of this machine or of a private network.
    #[arg(long)]
    pub allow_private: bool,
}

/// `carrack source status`.
#[derive(Debug, Args)]
pub struct SourceStatusArgs {
    /// Only this source.
    pub name: Option<String>,
    /// Objects of each source that are named; the rest is counted.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub limit: usize,
}

/// `carrack source rescan`.
#[derive(Debug, Args)]
pub struct SourceRescanArgs {
    /// Its name.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub name: Option<String>,
    /// All sources.
    #[arg(long)]
    pub all: bool,
}

/// `carrack source relocate`.
#[derive(Debug, Args)]
pub struct SourceRelocateArgs {
    /// The name of a source, or a folder that things were added from.
    #[arg(value_name = "NAME|PATH")]
    pub name: OsString,
    /// Where the same data are now.
    #[arg(value_name = "URL|PATH")]
    pub place: OsString,
    /// How the new place is reached.
    #[command(flatten)]
    pub access: SourceAccess,
    /// Blocks that are read at the new place and hashed.
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub sample: u64,
    /// Objects that may be missing there: they are out of service from then on.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub allow_missing: u64,
    /// Look and compare, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// `carrack cid …`.
#[derive(Debug, Subcommand)]
pub enum CidCommand {
    /// Show version, codec, hash and the CID's other spellings.
    Inspect {
        /// CID, ipfs:// or gateway URL.
        cid: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_switch_does_not_take_the_path_behind_it() {
        for (args, raw_leaves) in [
            (["--raw-leaves", "dir"].as_slice(), Some(true)),
            (&["--raw-leaves=false", "dir"], Some(false)),
            (&["dir"], None),
        ] {
            let args = ["carrack", "add"].iter().chain(args);
            let Command::Add(add) = Cli::try_parse_from(args).unwrap().command else {
                panic!("not an add");
            };
            assert_eq!(add.paths, [std::ffi::OsString::from("dir")]);
            assert_eq!(add.dag.raw_leaves, raw_leaves);
        }
    }
}
