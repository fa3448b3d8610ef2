//! SVG to PNG.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resvg::{tiny_skia, usvg};
use thiserror::Error;

/// Why a figure did not become pixels.
#[derive(Debug, Error)]
pub enum RasterError {
    /// Text needs one.
    #[error("no TrueType font under {0:?}: install fonts-dejavu-core")]
    NoFont(&'static [&'static str]),
    /// The drawing is not what the rasterizer reads.
    #[error("figure: {0}")]
    Svg(#[from] usvg::Error),
    /// The size is zero or out of range.
    #[error("figure of {width} x {height}")]
    Size {
        /// Pixels across.
        width: f32,
        /// Pixels down.
        height: f32,
    },
    /// The encoder failed.
    #[error("png: {0}")]
    Encode(String),
}

const FONT_DIRECTORIES: &[&str] = &["/usr/share/fonts", "/usr/local/share/fonts"];
/// Taken first, so that figures look the same wherever it is installed.
const PREFERRED: [&str; 3] = ["DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf"];
/// Pixels per unit of the drawing.
const SCALE: f32 = 1.6;

/// Renders a drawing with the machine's fonts.
///
/// # Errors
/// No font on the machine, or a drawing that is none.
pub fn png(svg: &str) -> Result<Vec<u8>, RasterError> {
    let options = usvg::Options { fontdb: Arc::new(fonts()?), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options)?;
    let size = tree.size();
    let (width, height) = (size.width() * SCALE, size.height() * SCALE);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float's cast saturates; new checks"
    )]
    let pixmap = tiny_skia::Pixmap::new(width.ceil() as u32, height.ceil() as u32);
    let mut pixmap = pixmap.ok_or(RasterError::Size { width, height })?;
    pixmap.fill(tiny_skia::Color::WHITE);
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut pixmap.as_mut());
    pixmap.encode_png().map_err(|error| RasterError::Encode(error.to_string()))
}

/// One sans-serif family and its bold face; reading all fonts of a desktop would take seconds.
fn fonts() -> Result<usvg::fontdb::Database, RasterError> {
    let mut files = Vec::new();
    for directory in FONT_DIRECTORIES {
        collect(Path::new(directory), &mut files);
    }
    files.sort();
    let preferred = PREFERRED.iter().find_map(|name| files.iter().find(|file| file.ends_with(name)));
    let regular = preferred.or_else(|| files.first()).ok_or(RasterError::NoFont(FONT_DIRECTORIES))?;
    let mut database = usvg::fontdb::Database::new();
    for file in [regular.clone(), bold(regular)] {
        // A missing bold face is drawn with the regular one.
        if let Ok(data) = fs::read(file) {
            database.load_font_data(data);
        }
    }
    let family = database.faces().next().and_then(|face| face.families.first()).map(|(name, _)| name.clone());
    database.set_sans_serif_family(family.ok_or(RasterError::NoFont(FONT_DIRECTORIES))?);
    Ok(database)
}

fn bold(regular: &Path) -> PathBuf {
    let name = regular.file_stem().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix("-Regular").unwrap_or(&name);
    regular.with_file_name(format!("{stem}-Bold.ttf"))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "ttf") {
            files.push(path);
        }
    }
}
