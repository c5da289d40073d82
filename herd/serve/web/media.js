// Pictures and videos of a message: read, made small enough, shown, and written as `data:` URLs for the server.
const SENT_AS_IS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const MAX_PICTURE_BYTES = 4 * 2 ** 20, MAX_SIDE = 2048, MAX_VIDEO_BYTES = 20 * 2 ** 20;
const VIDEO_NAME = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|ogv)$/i;
const urls = new WeakMap();

/** A file as `{kind, name, blob}`. What only the browser can read, and what is large, is drawn again as a PNG. Throws an
    Error for what is neither picture nor video. */
export async function readFile(file) {
  const name = file.name || "picture";
  if (file.type.startsWith("video/") || VIDEO_NAME.test(name)) {
    if (file.size > MAX_VIDEO_BYTES) {
      throw new Error(`${name} has ${(file.size / 2 ** 20).toFixed(1)} MiB; a video may have ${MAX_VIDEO_BYTES / 2 ** 20}: cut it, or make it smaller.`);
    }
    return { kind: "video", name, blob: file.type.startsWith("video/") ? file : new Blob([file], { type: "video/mp4" }) };
  }
  const image = new Image(), address = URL.createObjectURL(file);
  try {
    image.src = address;
    await image.decode();
    const plain = SENT_AS_IS.includes(file.type) && file.size <= MAX_PICTURE_BYTES;
    return { kind: "image", name, blob: plain ? file : await redrawn(image) };
  } catch {
    throw new Error(`${name} is not a picture or video that can be read: try PNG, JPEG, WebP or MP4.`);
  } finally {
    URL.revokeObjectURL(address);
  }
}
function redrawn(image) {
  const scale = Math.min(1, MAX_SIDE / Math.max(image.naturalWidth, image.naturalHeight)), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("it cannot be drawn"))), "image/png");
  });
}

/** The picture or the player of one `{kind, name, blob}`. */
export function mediaNode({ kind, name, blob }, label) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  const node = document.createElement(kind === "video" ? "video" : "img");
  node.src = urls.get(blob);
  if (kind === "video") { node.controls = true; node.preload = "metadata"; node.setAttribute("aria-label", `${label}: ${name}`); }
  else node.alt = `${label}: ${name}`;
  return node;
}

/** As the API takes it. */
export async function mediaPart({ kind, blob }) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  return kind === "video" ? { type: "video_url", video_url: { url } } : { type: "image_url", image_url: { url } };
}
